package main

// Job: an ESXi host's own door beside the vCenter's: the host's machines under ids of its own, with a
// certificate, a user and a password of its own.
// Rule: a vCenter's id of a machine or a snapshot means nothing here, nor does a machine of another host.

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// door is what a client needs to know of it.
type door struct {
	Host         string `json:"host"`
	ID           string `json:"id"`
	Address      string `json:"address"`
	User         string `json:"user"`
	PasswordFile string `json:"password_file"`
	Certificate  string `json:"certificate"`
	SHA1         string `json:"thumbprint_sha1"`
	SHA256       string `json:"thumbprint_sha256"`

	password string
	front    *front
}

var doors []*door

// openDoors opens one for each host. They listen where the API does, at ports of their own.
func openDoors(f *front, all []*simulator.HostSystem) error {
	for _, host := range all {
		folder := filepath.Join(*dir, "hosts", host.Self.Value)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		d := &door{Host: host.Name, ID: host.Self.Value, User: "root", front: f}
		d.password = "root-" + stableID("password", host.Self.Value+f.address, 0)[:12]
		d.PasswordFile = filepath.Join(folder, "password")
		if err := os.WriteFile(d.PasswordFile, []byte(d.password), 0o600); err != nil {
			return err
		}
		own, err := makeCertificate(folder, false)
		if err != nil {
			return err
		}
		d.Certificate, d.SHA1, d.SHA256 = own.file, own.sha1, own.sha256
		at, _, err := net.SplitHostPort(*listen)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
		if err != nil {
			return err
		}
		d.Address = listener.Addr().String()
		server := &http.Server{
			Handler: d, ErrorLog: log.New(io.Discard, "", 0),
			ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 15 * time.Minute,
		}
		config := &tls.Config{Certificates: []tls.Certificate{own.tls}, MinVersion: tls.VersionTLS12}
		go func() { _ = server.Serve(tls.NewListener(listener, config)) }()
		doors = append(doors, d)
	}
	return nil
}

var (
	hostsVM       = regexp.MustCompile(`(type="VirtualMachine"[^>]*>)(\d+)<`)
	hostsSnapshot = regexp.MustCompile(`(type="VirtualMachineSnapshot"[^>]*>)\d+-(snapshot-\d+)<`)
	alien         = regexp.MustCompile(`type="(VirtualMachine(?:Snapshot)?)"[^>]*>((?:vm|snapshot)-\d+)<`)
	ourVM         = regexp.MustCompile(`>vm-(\d+)</`)
	ourSnapshot   = regexp.MustCompile(`>(snapshot-\d+)</`)
	foundVM       = regexp.MustCompile(`<returnval[^>]*>(vm-\d+)</returnval>`)
	anyVM         = regexp.MustCompile(`type="VirtualMachine"[^>]*>(vm-\d+)<`)
)

// ServeHTTP turns the host's ids into ours, asks the vCenter's front, and turns the answer's ids back.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const most = 16 << 20
	text, err := io.ReadAll(io.LimitReader(r.Body, most))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if wrong := alien.FindSubmatch(text); wrong != nil {
		d.unknown(w, ref{Type: string(wrong[1]), Value: string(wrong[2])})
		return
	}
	text = hostsVM.ReplaceAll(text, []byte("${1}vm-$2<"))
	text = hostsSnapshot.ReplaceAll(text, []byte("${1}$2<"))
	for _, asked := range anyVM.FindAllSubmatch(text, -1) {
		if !d.has(string(asked[1])) {
			d.unknown(w, ref{Type: "VirtualMachine", Value: strings.TrimPrefix(string(asked[1]), "vm-")})
			return
		}
	}
	call, err := parse(text)
	if err == nil && call.method == "Login" {
		if call.body.child("userName") != d.User || call.body.child("password") != d.password {
			message := "Cannot complete login due to an incorrect user name or password."
			answerFault(w, message, &types.InvalidLogin{})
			return
		}
		text = d.front.login()
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	answer := httptest.NewRecorder()
	d.front.ServeHTTP(answer, r)
	for name, values := range answer.Header() {
		if name != "Content-Length" {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(d.theirs(call, answer.Body.Bytes()))
}

// theirs turns an answer's ids into the host's.
func (d *door) theirs(call *request, text []byte) []byte {
	if call != nil && (call.method == "FindByUuid" || call.method == "FindAllByUuid") {
		for _, found := range foundVM.FindAllSubmatch(text, -1) {
			if !d.has(string(found[1])) {
				text = bytes.Replace(text, found[0], nil, 1)
			}
		}
	}
	text = bytes.ReplaceAll(text, []byte("<apiType>VirtualCenter<"), []byte("<apiType>HostAgent<"))
	text = ourSnapshot.ReplaceAllFunc(text, func(match []byte) []byte {
		id := string(ourSnapshot.FindSubmatch(match)[1])
		owner := "0"
		if s, ok := registry().Get(ref{Type: "VirtualMachineSnapshot", Value: id}).(*Snapshot); ok {
			owner = strings.TrimPrefix(s.Vm.Value, "vm-")
		}
		return []byte(">" + owner + "-" + id + "</")
	})
	return ourVM.ReplaceAll(text, []byte(">$1</"))
}

// has says whether a machine is on this host now.
func (d *door) has(id string) (here bool) {
	self := ref{Type: "VirtualMachine", Value: id}
	switch v := registry().Get(self).(type) {
	case *VM:
		v.locked(func() { here = v.Runtime.Host.Value == d.ID })
	case *simulator.VirtualMachine:
		registry().WithLock(v, func() { here = v.Runtime.Host.Value == d.ID })
	}
	return here
}

func (d *door) unknown(w http.ResponseWriter, which ref) {
	message := "The object has already been deleted or has not been completely created"
	answerFault(w, message, &types.ManagedObjectNotFound{Obj: which})
}

// login is a request for a session of the vCenter's user.
func (f *front) login() []byte {
	user := f.service.Listen.User
	password, _ := user.Password()
	return []byte(fmt.Sprintf(`<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>`+
		`<Login xmlns="urn:vim25"><_this type="SessionManager">%s</_this><userName>%s</userName>`+
		`<password>%s</password></Login></Body></Envelope>`,
		content().SessionManager.Value, user.Username(), password))
}
