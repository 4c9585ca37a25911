package main

// Job: Fetch, the way in which pyvmomi reads one property.
// Rule: an unset property is an empty answer; the library fails at it.

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// answerUnset answers a Fetch of a property that is not set, and says whether it did.
func answerUnset(w http.ResponseWriter, call *request) bool {
	property := strings.TrimSpace(call.body.child("prop"))
	collector, ok := registry().Get(content().PropertyCollector).(*Collector)
	if !ok || property == "" || registry().Get(call.this) == nil {
		return false
	}
	ctx := &simulator.Context{
		Session: &simulator.Session{Registry: simulator.NewRegistry()}, Map: registry(),
	}
	body, ok := collector.PropertyCollector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{
		SpecSet: []types.PropertyFilterSpec{{
			PropSet:   []types.PropertySpec{{Type: call.this.Type, PathSet: []string{property}}},
			ObjectSet: []types.ObjectSpec{{Obj: call.this}},
		}},
	}).(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil || len(body.Res.Returnval.Objects) != 1 {
		return false
	}
	object := body.Res.Returnval.Objects[0]
	if len(object.PropSet) > 0 || len(object.MissingSet) > 0 {
		return false
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
		`<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">`+
		`<soapenv:Body><FetchResponse xmlns="urn:vim25"></FetchResponse></soapenv:Body></soapenv:Envelope>`)
	return true
}
