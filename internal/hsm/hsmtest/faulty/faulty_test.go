//go:build cgo

package faulty_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// childOf is the environment variable that makes this test a process that uses the library at that path once.
const childOf = "FAULTY_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childOf); path != "" {
		os.Exit(runChild(path))
	}
	os.Exit(m.Run())
}

func runChild(path string) int {
	lib := p11.New(path)
	if err := lib.Initialize(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := lib.GetSlotList(true); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// scene is the library on a SoftHSM token. The library reads the path of its control file once, so each scene has a library of its
// own.
type scene struct {
	*p11.Ctx
	control *faulty.Control
	library string
	token   tokens.Token
	slot    uint
}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{token: tokens.SoftHSM(t)}
	var err error
	if s.library, err = faulty.Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if s.control, err = faulty.NewControl(filepath.Join(dir, "control")); err != nil {
		t.Fatal(err)
	}
	for _, variable := range s.control.Env(s.token.Path) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	s.control.Reset(s.token.PIN)
	if s.Ctx = p11.New(s.library); s.Ctx == nil {
		t.Fatal("the faulty library does not load")
	}
	if err := s.Initialize(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.control.End()
		if err := s.Finalize(); err != nil {
			t.Error(err)
		}
	})
	slots, err := s.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := s.GetTokenInfo(slot); err == nil && info.Label == s.token.Label {
			s.slot = slot
			return s
		}
	}
	t.Fatal("the token does not exist")
	return nil
}

func (s *scene) open(t *testing.T) p11.SessionHandle {
	t.Helper()
	session, err := s.OpenSession(s.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// codeOf returns 0 for nil.
func codeOf(err error) uint {
	var code p11.Error
	errors.As(err, &code)
	return uint(code)
}

func TestCode_failsTheNumberedCalls(t *testing.T) {
	s := newScene(t)
	session := s.open(t)
	s.control.Inject(faulty.Fault{
		Kind: faulty.Code, Parameter: p11.CKR_DEVICE_ERROR, Functions: []string{"C_GenerateRandom"}, First: 2, Every: 3, Times: 2,
	})
	got := ""
	for range 12 {
		_, err := s.GenerateRandom(session, 8)
		got += fmt.Sprintf("%x ", codeOf(err))
	}
	if want := "0 30 0 0 30 0 0 0 0 0 0 0 "; got != want || s.control.Fired() != 2 {
		t.Errorf("the calls return %s, want %s", got, want)
	}
	if n := s.control.Calls("C_GenerateRandom"); n != 12 {
		t.Errorf("%d calls were counted, want 12", n)
	}
	s.control.Inject(faulty.Fault{
		Kind: faulty.Code, Parameter: p11.CKR_HOST_MEMORY, Functions: []string{"C_GetSessionInfo"}, Counted: []string{"C_GenerateRandom"},
	}, faulty.Fault{Kind: faulty.Code, Parameter: p11.CKR_DEVICE_ERROR, Functions: []string{"C_GenerateRandom"}, Times: 1})
	_, before := s.GetSessionInfo(session)
	if _, err := s.GenerateRandom(session, 8); codeOf(err) != p11.CKR_DEVICE_ERROR {
		t.Errorf("the second fault does not happen: %v", err)
	}
	_, after := s.GetSessionInfo(session)
	s.control.End()
	_, ended := s.GetSessionInfo(session)
	if before != nil || codeOf(after) != p11.CKR_HOST_MEMORY || ended != nil {
		t.Errorf("the calls return %v, %v and %v", before, after, ended)
	}
}

func TestCode_inside_hasTakenEffect(t *testing.T) {
	s := newScene(t)
	for inside, want := range map[bool]int{false: 0, true: 1} {
		session := s.open(t)
		s.control.Inject(faulty.Fault{Kind: faulty.Code, Parameter: p11.CKR_DEVICE_ERROR, Functions: []string{"C_CreateObject"}, Inside: inside})
		_, err := s.CreateObject(session, []*p11.Attribute{
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA), p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_PRIVATE, false),
		})
		if codeOf(err) != p11.CKR_DEVICE_ERROR {
			t.Errorf("C_CreateObject returns %v", err)
		}
		if err := s.FindObjectsInit(session, nil); err != nil {
			t.Fatal(err)
		}
		if found, _, err := s.FindObjects(session, 8); err != nil || len(found) != want {
			t.Errorf("inside %v: %d objects, want %d: %v", inside, len(found), want, err)
		}
		if err := s.CloseSession(session); err != nil { // which destroys the object
			t.Fatal(err)
		}
	}
}

// A fault that happens once does not happen again in the next process.
func TestCrash_endsOneProcess(t *testing.T) {
	s := newScene(t)
	for kind, want := range map[faulty.Kind]func(*os.ProcessState) bool{
		faulty.Segv: func(state *os.ProcessState) bool { return state.ExitCode() == 2 }, // the Go runtime reports the signal
		faulty.Kill: func(state *os.ProcessState) bool {
			status, _ := state.Sys().(syscall.WaitStatus)
			return status.Signaled() && status.Signal() == syscall.SIGKILL
		},
		faulty.Exit: func(state *os.ProcessState) bool { return state.ExitCode() == 3 },
	} {
		s.control.Inject(faulty.Fault{Kind: kind, Functions: []string{"C_Initialize"}, Inside: true, Times: 1})
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childOf+"="+s.library)
		if out, err := cmd.CombinedOutput(); err == nil || !want(cmd.ProcessState) {
			t.Errorf("kind %d: the process ends with %v\n%s", kind, err, out)
		}
		again := exec.CommandContext(t.Context(), os.Args[0])
		again.Env = cmd.Env
		if out, err := again.CombinedOutput(); err != nil || s.control.Fired() != 1 {
			t.Errorf("kind %d: the next process ends with %v\n%s", kind, err, out)
		}
	}
}

func TestHang_lastsUntilTheFaultEnds(t *testing.T) {
	s := newScene(t)
	session := s.open(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Hang, Functions: []string{"C_GenerateRandom"}, Times: 1})
	done := make(chan error)
	go func() {
		_, err := s.GenerateRandom(session, 8)
		done <- err
	}()
	for s.control.Fired() == 0 {
		select {
		case err := <-done:
			t.Fatalf("the call returns %v", err)
		default:
		}
	}
	if _, err := s.GetSessionInfo(session); err != nil { // other calls work
		t.Error(err)
	}
	s.control.End()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLimit_boundsTheOpenSessions(t *testing.T) {
	s := newScene(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Limit, Parameter: 2})
	first := s.open(t)
	s.open(t)
	if _, err := s.OpenSession(s.slot, p11.CKF_SERIAL_SESSION); codeOf(err) != p11.CKR_SESSION_COUNT {
		t.Errorf("C_OpenSession returns %v", err)
	}
	if err := s.CloseSession(first); err != nil {
		t.Fatal(err)
	}
	first = s.open(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Leak, Functions: []string{"C_CloseSession"}, Parameter: 2})
	if err := s.CloseSession(first); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetSessionInfo(first); err != nil {
		t.Errorf("the session is closed: %v", err)
	}
	if _, err := s.OpenSession(s.slot, p11.CKF_SERIAL_SESSION); codeOf(err) != p11.CKR_SESSION_COUNT {
		t.Errorf("C_OpenSession returns %v", err)
	}
}

func TestGarbage_isReturnedWithCKR_OK(t *testing.T) {
	s := newScene(t)
	session := s.open(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Garbage, Functions: []string{"C_GenerateRandom", "C_GetAttributeValue", "C_FindObjects"}})
	if random, err := s.GenerateRandom(session, 8); err != nil || !bytes.Equal(random, make([]byte, 8)) {
		t.Errorf("C_GenerateRandom returns %x, %v", random, err)
	}
	value := []byte("value")
	object, err := s.CreateObject(session, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_DATA), p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_PRIVATE, false),
		p11.NewAttribute(p11.CKA_VALUE, value),
	})
	if err != nil {
		t.Fatal(err)
	}
	read := []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)}
	got, err := s.GetAttributeValue(session, object, read)
	if err != nil || len(got[0].Value) != len(value) || bytes.Equal(got[0].Value, value) {
		t.Errorf("C_GetAttributeValue returns %q, %v", got[0].Value, err)
	}
	if err := s.FindObjectsInit(session, nil); err != nil {
		t.Fatal(err)
	}
	if found, _, err := s.FindObjects(session, 8); err != nil || len(found) != 0 {
		t.Errorf("C_FindObjects returns %d objects, %v", len(found), err)
	}
	s.control.Inject(faulty.Fault{Kind: faulty.Garbage, Functions: []string{"C_GetAttributeValue"}, Inside: true})
	if got, err := s.GetAttributeValue(session, object, read); err != nil || string(got[0].Value) != "walue" {
		t.Errorf("C_GetAttributeValue returns %q, %v", got[0].Value, err)
	}
}

func TestOtherKey_hasAnotherValue(t *testing.T) {
	s := newScene(t)
	session := s.open(t)
	if err := s.Login(session, p11.CKU_USER, s.token.PIN); err != nil {
		t.Fatal(err)
	}
	s.control.Inject(faulty.Fault{Kind: faulty.OtherKey, Functions: []string{"C_CreateObject"}})
	value := bytes.Repeat([]byte{7}, 16)
	key, err := s.CreateObject(session, []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
		p11.NewAttribute(p11.CKA_TOKEN, false), p11.NewAttribute(p11.CKA_SENSITIVE, false), p11.NewAttribute(p11.CKA_EXTRACTABLE, true),
		p11.NewAttribute(p11.CKA_VALUE, value),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.GetAttributeValue(session, key, []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)})
	if err != nil || len(got[0].Value) != 16 || bytes.Equal(got[0].Value, value) {
		t.Errorf("the value is %x, %v", got[0].Value, err)
	}
}

func TestLogins_areCountedByPIN(t *testing.T) {
	s := newScene(t)
	session := s.open(t)
	if err := s.Login(session, p11.CKU_USER, "wrong PIN"); codeOf(err) != p11.CKR_PIN_INCORRECT {
		t.Errorf("C_Login returns %v", err)
	}
	if err := s.Login(session, p11.CKU_USER, s.token.PIN); err != nil {
		t.Fatal(err)
	}
	if got, want := s.control.Logins(), (faulty.Logins{Right: 1, Wrong: 1, Refused: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestLibrary_forwardsOtherFunctions(t *testing.T) {
	s := newScene(t)
	if _, err := s.GetMechanismList(s.slot); err != nil {
		t.Error(err)
	}
	if info, err := s.GetInfo(); err != nil || info.ManufacturerID != "SoftHSM" {
		t.Errorf("C_GetInfo returns %+v, %v", info, err)
	}
}
