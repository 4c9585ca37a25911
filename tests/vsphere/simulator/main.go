// A simulator of vCenter and ESXi for tests: VMware's govmomi simulator, with changed-block tracking of our
// own over real files.
//
// Job: reads the flags, builds the inventory, opens the doors, prints one line of JSON that says where
// everything is.
// Rule: everything lies in -dir and listens on loopback; the end of this process ends every guest that it
// started.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

var (
	listen       = flag.String("listen", "127.0.0.1:0", "loopback address of the API (TLS)")
	controlAt    = flag.String("control", "127.0.0.1:0", "loopback address of the control endpoints (HTTP)")
	dir          = flag.String("dir", "", "folder for certificate, password and images")
	user         = flag.String("user", "administrator@vsphere.local", "the user that may log in")
	passwordFile = flag.String("password-file", "", "file with the password (default: a new one in DIR)")
	esxi         = flag.Bool("esxi", false, "a standalone ESXi instead of a vCenter")
	hosts        = flag.Int("hosts", 3, "ESXi hosts of the cluster")
	datastores   = flag.Int("datastores", 2, "datastores, seen by all hosts")
	ha           = flag.Bool("ha", false, "the cluster has high availability on")
	drs          = flag.Bool("drs", false, "the cluster has DRS on")
	plain        = flag.Int("plain", 0, "VMs without backing files, for scale")
	machinesFile = flag.String("machines", "", "JSON file with a list of machines; README.md has its fields")
	onPower      = flag.String("on-power", "", "command that runs a machine's guest; README.md has its words")
	maxAreas     = flag.Int("max-areas", 2000, "most changed areas in one answer")
	span         = flag.Int64("span", 0, "most bytes that one answer about changes describes (0: no limit)")
	page         = flag.Int("page", 1000, "most objects in one answer of the property collector")
	taskTime     = flag.Duration("task-time", 100*time.Millisecond, "how long a task takes at least")
	strict       = flag.Bool("strict", true, "refuse requests whose elements are unknown or out of order")
	expired      = flag.Bool("expired-certificate", false, "the certificate ended yesterday")
	withParent   = flag.Bool("exit-with-parent", false, "end when the process that started this one ends")
	libdir       = flag.String("libdir", "", "folder of VDDK's stand-in, for its settings")
	plugin       = flag.String("plugin", "", "nbdkit's vddk plugin, only to be printed")
	release      = flag.String("release", "7.0.3", "the version that the server says it is")
	hostNames    = flag.String("host-names", "", "other names for the hosts: NAME[,NAME…]")
	hostDoors    = flag.Bool("host-doors", false, "each host listens, too, with ids and a user of its own")
	idle         = flag.Duration("session-idle", 0, "sessions end after so long without a call (0: never)")
	verbose      = flag.Bool("verbose", false, "say each request")
	machineFlags machineList
)

// machineList collects -machine NAME=FILE[,FILE…].
type machineList []machineSpec

func (l *machineList) String() string { return "" }

func (l *machineList) Set(text string) error {
	name, files, found := strings.Cut(text, "=")
	if !found || name == "" || files == "" {
		return fmt.Errorf("%q is not NAME=FILE[,FILE…]", text)
	}
	spec := machineSpec{Name: name}
	for _, file := range strings.Split(files, ",") {
		spec.Disks = append(spec.Disks, diskSpec{File: file})
	}
	*l = append(*l, spec)
	return nil
}

// place is the line that says where everything is.
type place struct {
	Address      string         `json:"address"`
	URL          string         `json:"url"`
	User         string         `json:"user"`
	PasswordFile string         `json:"password_file"`
	Certificate  string         `json:"certificate"`
	SHA1         string         `json:"thumbprint_sha1"`
	SHA256       string         `json:"thumbprint_sha256"`
	Control      string         `json:"control"`
	Exports      string         `json:"exports"`
	Libdir       string         `json:"libdir,omitempty"`
	Plugin       string         `json:"plugin,omitempty"`
	Hosts        []*door        `json:"hosts,omitempty"`
	Machines     []machineState `json:"machines"`
	Plain        int            `json:"plain"`
	Pid          int            `json:"pid"`
}

func main() {
	flag.Var(&machineFlags, "machine", "a machine over files: NAME=FILE[,FILE…]; may be repeated")
	flag.Parse()
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "simulator:", err)
		os.Exit(1)
	}
}

func run() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown word %q: all settings are flags, -help lists them", flag.Arg(0))
	}
	if *withParent {
		dieWithParent()
	}
	for _, address := range []string{*listen, *controlAt} {
		if err := onLoopback(address); err != nil {
			return err
		}
	}
	if *dir == "" {
		return fmt.Errorf("-dir is missing: name an empty folder")
	}
	absolute, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	*dir = absolute
	if err := os.MkdirAll(exports(), 0o700); err != nil {
		return err
	}
	password, err := readPassword()
	if err != nil {
		return err
	}
	certificate, err := makeCertificate(*dir, *expired)
	if err != nil {
		return err
	}
	specs, err := machineSpecs()
	if err != nil {
		return err
	}
	// What the library says goes to the log only when asked for: each update of each object is a line.
	if !*verbose {
		log.SetOutput(quiet{})
	}
	// The library makes a temporary folder for each datastore: within ours, it goes with it.
	if err := os.Setenv("TMPDIR", *dir); err != nil {
		return err
	}
	model, err := build(specs)
	if err != nil {
		return err
	}
	model.Service.Listen = &url.URL{User: url.UserPassword(*user, password)}

	front, err := newFront(model.Service, certificate)
	if err != nil {
		return err
	}
	controlled, err := serveControl(*controlAt, front)
	if err != nil {
		return err
	}
	if *hostDoors {
		if err := openDoors(front, allHosts()); err != nil {
			return err
		}
	}
	if err := writeStandIn(password, certificate); err != nil {
		return err
	}
	line, err := json.Marshal(place{
		Address: front.address, URL: "https://" + front.address + "/sdk", Control: controlled,
		User: *user, PasswordFile: *passwordFile,
		Certificate: certificate.file, SHA1: certificate.sha1, SHA256: certificate.sha256,
		Exports: exports(), Libdir: *libdir, Plugin: *plugin,
		Hosts: doors, Machines: states(), Plain: *plain, Pid: os.Getpid(),
	})
	if err != nil {
		return err
	}
	fmt.Println(string(line))

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	<-ended
	endGuests()
	return nil
}

// quiet drops what the library logs, but for what it found wrong.
type quiet struct{}

func (quiet) Write(text []byte) (int, error) {
	for _, word := range []string{"does not implement", "error encoding", "simulator:"} {
		if strings.Contains(string(text), word) {
			return os.Stderr.Write(text)
		}
	}
	return len(text), nil
}

func onLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not a loopback address", address)
	}
	return nil
}

func exports() string { return filepath.Join(*dir, "exports") }

func readPassword() (string, error) {
	if *passwordFile == "" {
		random := make([]byte, 12)
		if _, err := rand.Read(random); err != nil {
			return "", err
		}
		*passwordFile = filepath.Join(*dir, "password")
		if err := os.WriteFile(*passwordFile, []byte(hex.EncodeToString(random)), 0o600); err != nil {
			return "", err
		}
	}
	text, err := os.ReadFile(*passwordFile)
	if err != nil {
		return "", err
	}
	if password := strings.TrimRight(string(text), "\r\n"); password != "" {
		return password, nil
	}
	return "", fmt.Errorf("%s is empty: a password is needed", *passwordFile)
}

func machineSpecs() ([]machineSpec, error) {
	specs := []machineSpec(machineFlags)
	if *machinesFile != "" {
		text, err := os.ReadFile(*machinesFile)
		if err != nil {
			return nil, err
		}
		var more []machineSpec
		if err := strictJSON(text, &more); err != nil {
			return nil, fmt.Errorf("%s: %w", *machinesFile, err)
		}
		specs = append(specs, more...)
	}
	return specs, nil
}

// dieWithParent asks the kernel for a signal when the parent ends, also when it is killed.
func dieWithParent() {
	const setDeathSignal = 1
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setDeathSignal, uintptr(syscall.SIGTERM), 0)
	if os.Getppid() == 1 {
		os.Exit(1)
	}
}

var registry = func() *simulator.Registry { return simulator.Map }
