package main

// Job: a server whose clock is wrong.
// Rule: only what the server says of its time is wrong; its certificate and its tasks have the machine's
// time.

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"time"

	"github.com/vmware/govmomi/simulator"
)

var told = regexp.MustCompile(`>[^<>]+</returnval>`)

// answerSkewed answers CurrentTime as the library does, with another time.
func answerSkewed(w http.ResponseWriter, service *simulator.Service, r *http.Request) {
	answer := httptest.NewRecorder()
	service.ServeMux.ServeHTTP(answer, r)
	now := time.Now().Add(limits.clock()).UTC().Format("2006-01-02T15:04:05.000000Z")
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(told.ReplaceAll(answer.Body.Bytes(), []byte(">"+now+"</returnval>")))
}
