module github.com/keyconvoy/keyconvoy

go 1.26.4

require (
	github.com/go-logr/logr v1.4.3
	github.com/google/uuid v1.6.0
)
