package main

// Job: the REST interface for tags and categories, from the library.
// Rule: it is there for a vCenter only, as in reality.

import (
	"net/url"

	"github.com/vmware/govmomi/simulator"
	vapi "github.com/vmware/govmomi/vapi/simulator"
)

func addTags(service *simulator.Service) error {
	if *esxi {
		return nil
	}
	own := &url.URL{Scheme: "https", Host: *listen, User: service.Listen.User}
	path, handler := vapi.New(own, registry().OptionManager().Setting)
	service.Handle(path, handler)
	return nil
}
