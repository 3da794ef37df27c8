//go:build cgo

package token

import (
	"context"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// List returns what a library reports about itself and its tokens. It initializes the library if no token of it is open. Of cfg,
// it uses Path, Parameters and Watch. Every error is an *hsm.Error: Misconfigured (the library does not load) or Unavailable.
func (l *Libraries) List(ctx context.Context, cfg Config) (hsm.LibraryInfo, error) {
	type result struct {
		info hsm.LibraryInfo
		err  error
	}
	done := make(chan result, 1)
	go func() { // a call may hang
		info, err := l.list(ctx, &cfg)
		done <- result{info, err}
	}()
	select {
	case r := <-done:
		return r.info, asError(r.err)
	case <-ctx.Done():
		return hsm.LibraryInfo{}, timeoutError(ctx.Err())
	}
}

func (l *Libraries) list(ctx context.Context, cfg *Config) (hsm.LibraryInfo, error) {
	lib, _, err := l.acquire(ctx, cfg)
	if err != nil {
		return hsm.LibraryInfo{}, err
	}
	defer lib.release(context.WithoutCancel(ctx))
	if _, err := lib.enter(ctx); err != nil {
		return hsm.LibraryInfo{}, err
	}
	defer lib.leave() // before release
	slots, err := allSlots(lib.c)
	if err != nil {
		return hsm.LibraryInfo{}, unavailableError(err)
	}
	var info hsm.LibraryInfo
	if about, err := lib.c.GetInfo(); err == nil { // a library works without it
		info = hsm.LibraryInfo{
			Manufacturer: trim(about.ManufacturerID), Description: trim(about.LibraryDescription),
			Version: versionOf(about.LibraryVersion), Cryptoki: versionOf(about.CryptokiVersion),
		}
	}
	for _, s := range slots {
		info.Tokens = append(info.Tokens, tokenInfoOf(s))
	}
	return info, nil
}

func tokenInfoOf(s slot) hsm.TokenInfo {
	has := func(flag uint) bool { return s.info.Flags&flag != 0 }
	about := infoOf(s.info)
	return hsm.TokenInfo{
		Slot: s.slotID, Label: s.label, Manufacturer: about.Manufacturer, Model: about.Model, Serial: about.Serial, Firmware: about.Firmware,
		Initialized:    has(p11.CKF_TOKEN_INITIALIZED),
		LoginRequired:  has(p11.CKF_LOGIN_REQUIRED),
		PINInitialized: has(p11.CKF_USER_PIN_INITIALIZED),
		PINCountLow:    has(p11.CKF_USER_PIN_COUNT_LOW),
		PINFinalTry:    has(p11.CKF_USER_PIN_FINAL_TRY),
		PINLocked:      has(p11.CKF_USER_PIN_LOCKED),
		PINPad:         has(p11.CKF_PROTECTED_AUTHENTICATION_PATH),
		WriteProtected: has(p11.CKF_WRITE_PROTECTED),
	}
}

func versionOf(v p11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
