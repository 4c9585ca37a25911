package main

// Job: the property collector, and its first way to read: at once, in pages. The library has no pages.
// Rule: a page holds no more than the client and the server allow; a token is good once.

import (
	"fmt"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Collector takes the place of the library's one. Each session has its own, made from the zero value.
type Collector struct {
	simulator.PropertyCollector

	mu      sync.Mutex
	pages   map[string]pages
	token   int
	next    int64 // the first change that the client has not heard of
	version int
	known   map[ref]map[ref]bool // per filter, the objects that the client knows
	queue   []types.PropertyFilterUpdate
	cancel  chan struct{}
}

// pages is what is left of an answer, and how much a page holds.
type pages struct {
	objects []types.ObjectContent
	size    int
}

func addCollector() {
	c := &Collector{}
	c.Self = content().PropertyCollector
	registry().Put(c)
	registry().AddHandler(changes)
}

// CreatePropertyCollector makes a further one for the session.
func (c *Collector) CreatePropertyCollector(
	ctx *simulator.Context, _ *types.CreatePropertyCollector,
) soap.HasFault {
	fresh := &Collector{}
	fresh.Self.Type = "PropertyCollector"
	return &methods.CreatePropertyCollectorBody{
		Res: &types.CreatePropertyCollectorResponse{Returnval: ctx.Session.Put(fresh).Reference()},
	}
}

func atMost(asked int32) int {
	if asked > 0 && int(asked) < *page {
		return int(asked)
	}
	return *page
}

// RetrievePropertiesEx answers with a first page.
func (c *Collector) RetrievePropertiesEx(
	ctx *simulator.Context, r *types.RetrievePropertiesEx,
) soap.HasFault {
	res := c.PropertyCollector.RetrievePropertiesEx(ctx, r)
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return res
	}
	if len(body.Res.Returnval.Objects) == 0 {
		body.Res.Returnval = nil
		return body
	}
	size := atMost(r.Options.MaxObjects)
	if len(body.Res.Returnval.Objects) > size && ctx.Session != nil {
		c.mu.Lock()
		body.Res.Returnval.Token = c.keep(pages{body.Res.Returnval.Objects[size:], size})
		c.mu.Unlock()
		body.Res.Returnval.Objects = body.Res.Returnval.Objects[:size]
	}
	return body
}

// RetrieveProperties has no pages.
func (c *Collector) RetrieveProperties(ctx *simulator.Context, r *types.RetrieveProperties) soap.HasFault {
	return c.PropertyCollector.RetrieveProperties(ctx, r)
}

func (c *Collector) keep(rest pages) string {
	if c.pages == nil {
		c.pages = map[string]pages{}
	}
	c.token++
	token := fmt.Sprint(c.token)
	c.pages[token] = rest
	return token
}

// ContinueRetrievePropertiesEx gives the next page; a token is good once.
func (c *Collector) ContinueRetrievePropertiesEx(
	_ *simulator.Context, r *types.ContinueRetrievePropertiesEx,
) soap.HasFault {
	body := &methods.ContinueRetrievePropertiesExBody{}
	c.mu.Lock()
	defer c.mu.Unlock()
	rest, ok := c.pages[r.Token]
	if !ok {
		body.Fault_ = simulator.Fault("", &types.InvalidProperty{Name: "token"})
		return body
	}
	delete(c.pages, r.Token)
	body.Res = &types.ContinueRetrievePropertiesExResponse{}
	if len(rest.objects) > rest.size {
		body.Res.Returnval.Token = c.keep(pages{rest.objects[rest.size:], rest.size})
		rest.objects = rest.objects[:rest.size]
	}
	body.Res.Returnval.Objects = rest.objects
	return body
}

// CancelRetrievePropertiesEx drops the pages that are left.
func (c *Collector) CancelRetrievePropertiesEx(
	_ *simulator.Context, r *types.CancelRetrievePropertiesEx,
) soap.HasFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pages, r.Token)
	return &methods.CancelRetrievePropertiesExBody{Res: &types.CancelRetrievePropertiesExResponse{}}
}

// CancelWaitForUpdates ends a wait.
func (c *Collector) CancelWaitForUpdates(_ *types.CancelWaitForUpdates) soap.HasFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		close(c.cancel)
		c.cancel = nil
	}
	return &methods.CancelWaitForUpdatesBody{Res: &types.CancelWaitForUpdatesResponse{}}
}

// DestroyPropertyCollector takes its filters with it.
func (c *Collector) DestroyPropertyCollector(
	ctx *simulator.Context, r *types.DestroyPropertyCollector,
) soap.HasFault {
	c.CancelWaitForUpdates(&types.CancelWaitForUpdates{This: r.This})
	return c.PropertyCollector.DestroyPropertyCollector(ctx, r)
}
