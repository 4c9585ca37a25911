package main

// Job: requests as a real server reads them: known elements only, in the order of the interface's
// description.
// Rule: the library takes elements in any order and drops those that it does not know; a real server does
// neither.

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// node is an element of a request.
type node struct {
	name     string
	kind     string // xsi:type, without its prefix
	value    string
	children []*node
}

// request is a call: which method, of which object.
type request struct {
	method string
	this   types.ManagedObjectReference
	body   *node
}

// child is the text of a child element.
func (n *node) child(name string) string {
	for _, one := range n.children {
		if one.name == name {
			return one.value
		}
	}
	return ""
}

// parse finds the call in an envelope.
func parse(text []byte) (*request, error) {
	root, err := read(text)
	if err != nil {
		return nil, err
	}
	for _, part := range root.children {
		if part.name != "Body" || len(part.children) != 1 {
			continue
		}
		call := &request{method: part.children[0].name, body: part.children[0]}
		for _, child := range call.body.children {
			if child.name == "_this" {
				call.this = ref{Type: child.kind, Value: strings.TrimSpace(child.value)}
			}
		}
		return call, nil
	}
	return nil, fmt.Errorf("the envelope has no body with one call")
}

// read makes a tree of a document.
func read(text []byte) (*node, error) {
	decoder := xml.NewDecoder(bytes.NewReader(text))
	top := &node{}
	open := []*node{top}
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			if len(top.children) != 1 {
				return nil, fmt.Errorf("not one element")
			}
			return top.children[0], nil
		}
		if err != nil {
			return nil, err
		}
		last := open[len(open)-1]
		switch t := token.(type) {
		case xml.StartElement:
			fresh := &node{name: t.Name.Local}
			for _, attribute := range t.Attr {
				// A managed object's type is an attribute without namespace; a value's type is one of XML
				// Schema's.
				if attribute.Name.Local == "type" && (fresh.kind == "" || attribute.Name.Space == "") {
					fresh.kind = attribute.Value[strings.Index(attribute.Value, ":")+1:]
				}
			}
			last.children = append(last.children, fresh)
			open = append(open, fresh)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			last.value += string(t)
		}
	}
}

// check compares a call with the interface's description, which the library's types are made from.
func (r *request) check() error {
	kind, ok := typeByName(r.method)
	if !ok {
		return nil // the library says so itself
	}
	return ordered(r.body, kind, r.method)
}

// field is an element that a type has.
type field struct {
	name string
	kind reflect.Type
	list bool
	must bool
}

func fields(kind reflect.Type) (out []field) {
	for i := 0; i < kind.NumField(); i++ {
		f := kind.Field(i)
		if f.Anonymous {
			out = append(out, fields(f.Type)...)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("xml"), ",")
		attribute := strings.Contains(options, "attr") && !strings.Contains(options, "typeattr")
		if name == "" || name == "-" || attribute {
			continue
		}
		one := field{name: name, kind: f.Type}
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() != reflect.Uint8 {
			one.kind, one.list = f.Type.Elem(), true
		}
		one.must = !strings.Contains(options, "omitempty") && f.Type.Kind() != reflect.Ptr && !one.list
		out = append(out, one)
	}
	return out
}

func ordered(n *node, kind reflect.Type, path string) error {
	for kind.Kind() == reflect.Ptr {
		kind = kind.Elem()
	}
	if kind.Kind() == reflect.Interface {
		if n.kind == "" {
			return fmt.Errorf("%s needs xsi:type", path)
		}
		real, ok := typeByName(n.kind)
		if !ok || strings.HasPrefix(n.kind, "ArrayOf") {
			return nil
		}
		kind = real
	}
	if kind.Kind() != reflect.Struct || kind == reflect.TypeOf(ref{}) || kind.PkgPath() == "time" {
		return nil
	}
	if n.kind != "" && n.kind != kind.Name() {
		if real, ok := typeByName(n.kind); ok && real.Kind() == reflect.Struct {
			kind = real
		}
	}
	wanted, at, seen := fields(kind), 0, map[string]bool{}
	for _, child := range n.children {
		found := -1
		for i := at; i < len(wanted); i++ {
			if wanted[i].name == child.name {
				found = i
				break
			}
		}
		if found < 0 {
			for _, one := range wanted {
				if one.name == child.name {
					return fmt.Errorf("%s: %s comes too late, or twice", path, child.name)
				}
			}
			return fmt.Errorf("%s: %s is not known", path, child.name)
		}
		if err := ordered(child, wanted[found].kind, path+"."+child.name); err != nil {
			return err
		}
		seen[child.name] = true
		at = found
		if !wanted[found].list {
			at = found + 1
		}
	}
	for _, one := range wanted {
		if one.must && !seen[one.name] {
			return fmt.Errorf("%s: %s is missing", path, one.name)
		}
	}
	return nil
}
