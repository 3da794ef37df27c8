//go:build cgo

package pkcs11

import (
	"os"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// kinds are the modules that every test of behaviour runs on.
var kinds = map[string]func(testing.TB) tokens.Token{"SoftHSM": tokens.SoftHSM, "NSS": tokens.NSS}

// onEach runs a test on each module, one after the other: the spy is one for all, and so is NSS's token.
func onEach(t *testing.T, test func(*testing.T, tokens.Token)) {
	t.Helper()
	for kind, newToken := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, newToken(t)) })
	}
}

// configOf is the configuration for a token that allows everything but PKCS #1 v1.5.
func configOf(token tokens.Token) Config {
	return Config{
		Library: "test", Path: token.Path, Parameters: token.Parameters, Token: TokenSelector{Label: token.Label},
		PIN: redact.Bytes(token.PIN), Custody: hsm.CustodyHost,
	}
}

func mustOpen(t testing.TB, cfg Config) *Module {
	t.Helper()
	m, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

func wantKind(t testing.TB, err error, want hsm.Kind, what string) {
	t.Helper()
	if got := hsm.KindOf(err); got != want {
		t.Errorf("%s: %v (kind %q); want kind %q", what, err, got, want)
	}
}

// spies see every call into a library; by path.
var spies sync.Map

func TestMain(m *testing.M) {
	libraries.load = func(path string) (cryptoki, error) {
		c, err := loadLibrary(path)
		if err != nil {
			return nil, err
		}
		s := &spy{cryptoki: c, calls: map[string]int{}}
		spies.Store(path, s)
		return s, nil
	}
	libraries.reinit = 0                               // tests lose a module more often than once in a while,
	libraries.rescan = newAllowance(1000, time.Second) // and make more tokens
	os.Exit(m.Run())
}

// spy counts calls and injects faults.
type spy struct {
	cryptoki

	mu    sync.Mutex
	calls map[string]int
	// fault, where there is one, is asked before each call. It may wait.
	fault func(function string) error
	// flags are added to those of every token.
	flags uint
	// secrets are the very slices that came out of the token.
	secrets [][]byte
}

// spyOn returns the spy of an open module, clean, and cleans it afterwards.
func spyOn(t testing.TB, m *Module) *spy {
	t.Helper()
	value, ok := spies.Load(m.lib.path)
	if !ok {
		t.Fatal("the library was not loaded with a spy")
	}
	s := value.(*spy)
	s.reset()
	t.Cleanup(s.reset)
	return s
}

func (s *spy) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.calls)
	s.fault, s.flags, s.secrets = nil, 0, nil
}

func (s *spy) inject(fault func(function string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// count returns how often these functions were called since the spy was clean.
func (s *spy) count(functions ...string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, f := range functions {
		n += s.calls[f]
	}
	return n
}

func (s *spy) before(function string) error {
	s.mu.Lock()
	s.calls[function]++
	fault := s.fault
	s.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(function)
}

// failing is a fault: these functions fail with that code, the first n times.
func failing(code p11.Error, n int, functions ...string) func(string) error {
	var mu sync.Mutex
	return func(function string) error {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range functions {
			if f == function && n > 0 {
				n--
				return code
			}
		}
		return nil
	}
}

const always = 1 << 30

func (s *spy) Initialize(o ...p11.InitializeOption) error {
	if err := s.before("C_Initialize"); err != nil {
		return err
	}
	return s.cryptoki.Initialize(o...)
}

func (s *spy) Finalize() error {
	if err := s.before("C_Finalize"); err != nil {
		return err
	}
	return s.cryptoki.Finalize()
}

func (s *spy) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := s.cryptoki.GetTokenInfo(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Flags |= s.flags
	return info, err
}

func (s *spy) OpenSession(slot, flags uint) (p11.SessionHandle, error) {
	if err := s.before("C_OpenSession"); err != nil {
		return 0, err
	}
	return s.cryptoki.OpenSession(slot, flags)
}

func (s *spy) Login(h p11.SessionHandle, user uint, pin string) error {
	if err := s.before("C_Login"); err != nil {
		return err
	}
	return s.cryptoki.Login(h, user, pin)
}

func (s *spy) GenerateKey(h p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_GenerateKey"); err != nil {
		return 0, err
	}
	return s.cryptoki.GenerateKey(h, m, a)
}

func (s *spy) GenerateKeyPair(h p11.SessionHandle, m []*p11.Mechanism, a, b []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	if err := s.before("C_GenerateKeyPair"); err != nil {
		return 0, 0, err
	}
	return s.cryptoki.GenerateKeyPair(h, m, a, b)
}

func (s *spy) FindObjects(h p11.SessionHandle, n int) ([]p11.ObjectHandle, bool, error) {
	if err := s.before("C_FindObjects"); err != nil {
		return nil, false, err
	}
	return s.cryptoki.FindObjects(h, n)
}

func (s *spy) FindObjectsInit(h p11.SessionHandle, a []*p11.Attribute) error {
	if err := s.before("C_FindObjectsInit"); err != nil {
		return err
	}
	return s.cryptoki.FindObjectsInit(h, a)
}

func (s *spy) UnwrapKey(h p11.SessionHandle, m []*p11.Mechanism, with p11.ObjectHandle, wrapped []byte, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_UnwrapKey"); err != nil {
		return 0, err
	}
	return s.cryptoki.UnwrapKey(h, m, with, wrapped, a)
}

func (s *spy) WrapKey(h p11.SessionHandle, m []*p11.Mechanism, with, key p11.ObjectHandle) ([]byte, error) {
	if err := s.before("C_WrapKey"); err != nil {
		return nil, err
	}
	return s.cryptoki.WrapKey(h, m, with, key)
}

func (s *spy) DeriveKey(h p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, a []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_DeriveKey"); err != nil {
		return 0, err
	}
	return s.cryptoki.DeriveKey(h, m, base, a)
}

func (s *spy) GetAttributeValue(h p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) ([]*p11.Attribute, error) {
	got, err := s.cryptoki.GetAttributeValue(h, o, a)
	for _, attribute := range got {
		if attribute.Type == p11.CKA_VALUE {
			s.secret(attribute.Value)
		}
	}
	return got, err
}

func (s *spy) Decrypt(h p11.SessionHandle, ciphertext []byte) ([]byte, error) {
	plaintext, err := s.cryptoki.Decrypt(h, ciphertext)
	s.secret(plaintext)
	return plaintext, err
}

func (s *spy) GenerateRandom(h p11.SessionHandle, n int) ([]byte, error) {
	random, err := s.cryptoki.GenerateRandom(h, n)
	s.secret(random)
	return random, err
}

func (s *spy) secret(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = append(s.secrets, b)
}

// takeSecrets returns what came out since the spy was clean; it is something.
func (s *spy) takeSecrets() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.secrets) == 0 {
		panic("nothing was read")
	}
	return s.secrets
}

// direct is the library without the spy, for what happens behind our back.
func (s *spy) direct() *p11.Ctx { return s.cryptoki.(*p11.Ctx) }

// objects counts every object that the token shows to a session of its own, session objects of others
// included.
func objects(t testing.TB, m *Module) int {
	t.Helper()
	n := 0
	err := m.operate(t.Context(), func(s *session) error {
		handles, err := s.find(nil)
		n = len(handles)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
