{{/* objects renders the generated files that match a pattern, with the release's namespace: dict "root" $ "files" PATTERN */}}
{{- define "keyconvoy.objects" }}
{{- range $path, $_ := .root.Files.Glob .files }}
---
{{ $.root.Files.Get $path | replace "keyconvoy-system" $.root.Release.Namespace }}
{{- end }}
{{- end }}

{{- define "keyconvoy.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{/* libraryArgs are the flags that allow a library, as a list. */}}
{{- define "keyconvoy.libraryArgs" }}
- {{ printf "--pkcs11-module=%s=%s" .name .path | quote }}
{{- with .parameters }}
- {{ printf "--pkcs11-parameters=%s=%s" $.name . | quote }}
{{- end }}
{{- range .volumes }}
- {{ printf "--pkcs11-allow-path=%s=%s%s" $.name .mountPath (eq .readOnly false | ternary ":rw" "") | quote }}
{{- end }}
{{- range .allowedPaths }}
- {{ printf "--pkcs11-allow-path=%s=%s" $.name . | quote }}
{{- end }}
{{- range .environment }}
- {{ printf "--pkcs11-env=%s=%s" $.name .name | quote }}
{{- end }}
{{- end }}
