package main

// Job: the server's front: TLS, and what a test does to calls: 503, no answer, faults, refusals, a restart.
// Rule: what a test orders for a call happens before or after the library has it, never within.

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

type front struct {
	service *simulator.Service
	config  *tls.Config
	address string

	mu          sync.Mutex
	server      *http.Server
	unavailable time.Time // answers 503 until then
	calls       map[string]int
	refused     []string // requests that strictness refused
}

// stop is closed by a restart, so that no request waits in a server that is gone.
var stop = struct {
	sync.Mutex
	c chan struct{}
}{c: make(chan struct{})}

func stopping() <-chan struct{} {
	stop.Lock()
	defer stop.Unlock()
	return stop.c
}

func newFront(service *simulator.Service, certificate *identity) (*front, error) {
	service.RegisterSDK(registry())
	if err := addTags(service); err != nil {
		return nil, err
	}
	session := registry().SessionManager()
	session.TLSCert = func() string {
		return base64.StdEncoding.EncodeToString(certificate.tls.Certificate[0])
	}
	f := &front{
		service: service, calls: map[string]int{}, address: *listen,
		config: &tls.Config{Certificates: []tls.Certificate{certificate.tls}, MinVersion: tls.VersionTLS12},
	}
	return f, f.open()
}

// open listens; again at the same address after a restart.
func (f *front) open() error {
	var listener net.Listener
	var err error
	for try := 0; try < 50; try++ {
		if listener, err = net.Listen("tcp", f.address); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	f.address = listener.Addr().String()
	registry().SessionManager().ServiceHostName = f.address
	server := &http.Server{
		Handler: f, ErrorLog: log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 15 * time.Minute,
		// Without HTTP/2, as vCenter's API server.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	f.mu.Lock()
	f.server = server
	f.mu.Unlock()
	go func() { _ = server.Serve(tls.NewListener(listener, f.config)) }()
	return nil
}

// restart is vCenter going down and coming up: connections, sessions and tasks are gone; hosts go on.
func (f *front) restart(down time.Duration) error {
	f.mu.Lock()
	server := f.server
	f.mu.Unlock()
	stop.Lock()
	close(stop.c)
	stop.c = make(chan struct{})
	stop.Unlock()
	_ = server.Close()
	expireSessions()
	forgetTasks()
	time.Sleep(down)
	return f.open()
}

// ServeHTTP is every request's way.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	closed := time.Now().Before(f.unavailable)
	f.mu.Unlock()
	if closed {
		http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
		return
	}
	switch strings.TrimSuffix(r.URL.Path, "/") {
	case "/sdk", "/sdk/vimService":
		r.URL.Path = "/sdk"
		f.call(w, r)
	case "/sdk/vimServiceVersions.xml":
		f.service.ServiceVersions(w, r)
	default:
		f.service.ServeMux.ServeHTTP(w, r)
	}
}

func (f *front) call(w http.ResponseWriter, r *http.Request) {
	const most = 16 << 20
	text, err := io.ReadAll(io.LimitReader(r.Body, most))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(text))
	if r.Method != http.MethodPost {
		f.service.ServeMux.ServeHTTP(w, r)
		return
	}
	call, err := parse(text)
	if err != nil {
		answerFault(w, "simulator: the request cannot be read: "+err.Error(), &types.InvalidRequest{})
		return
	}
	f.mu.Lock()
	f.calls[call.method]++
	f.mu.Unlock()
	if *strict {
		if err := call.check(); err != nil {
			f.mu.Lock()
			f.refused = append(f.refused, err.Error())
			f.mu.Unlock()
			fmt.Fprintln(os.Stderr, "simulator: refused:", err)
			message := "simulator: a real server does not take this request: " + err.Error()
			answerFault(w, message, &types.InvalidRequest{})
			return
		}
	}
	due := faults.take(call.method, "call")
	if due != nil && !due.After {
		due.answer(w)
		return
	}
	if fault := refused(call.method, call.this); fault != nil {
		answerFault(w, "Permission to perform this operation was denied.", fault)
		return
	}
	if call.method == "Login" && !f.knows(call) {
		message := "Cannot complete login due to an incorrect user name or password."
		answerFault(w, message, &types.InvalidLogin{})
		return
	}
	if call.method == "Fetch" && answerUnset(w, call) {
		return
	}
	if call.method == "CurrentTime" && limits.clock() != 0 {
		answerSkewed(w, f.service, r)
		return
	}
	if due == nil {
		f.service.ServeMux.ServeHTTP(w, r)
		return
	}
	f.service.ServeMux.ServeHTTP(httptest.NewRecorder(), r)
	due.answer(w)
}

// knows says whether user and password are right. The library refuses wrong ones, too, in other words.
func (f *front) knows(call *request) bool {
	user := f.service.Listen.User
	password, _ := user.Password()
	return call.body.child("userName") == user.Username() && call.body.child("password") == password
}

// answer is a failure instead of what the method says.
func (one *failure) answer(w http.ResponseWriter) {
	if one.Drop {
		if hijacker, ok := w.(http.Hijacker); ok {
			if connection, _, err := hijacker.Hijack(); err == nil {
				connection.Close()
				return
			}
		}
		panic(http.ErrAbortHandler)
	}
	message := one.Message
	if message == "" {
		message = "simulator: " + one.Fault + " as ordered"
	}
	answerFault(w, message, one.fault())
}

// answerFault writes a fault as VMware does: HTTP 500, the fault's type on the detail's child.
func answerFault(w http.ResponseWriter, message string, fault types.BaseMethodFault) {
	name := typeName(fault)
	var detail bytes.Buffer
	encoder := xml.NewEncoder(&detail)
	start := xml.StartElement{Name: xml.Name{Local: name + "Fault"}, Attr: []xml.Attr{
		{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		{Name: xml.Name{Local: "xsi:type"}, Value: name},
	}}
	if err := encoder.EncodeElement(fault, start); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var text bytes.Buffer
	_ = xml.EscapeText(&text, []byte(message))
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
		`<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"`+
		` xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"`+
		` xmlns:xsd="http://www.w3.org/2001/XMLSchema"`+
		` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>`+
		`<faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail>`+
		`</soapenv:Fault></soapenv:Body></soapenv:Envelope>`, text.String(), detail.String())
}
