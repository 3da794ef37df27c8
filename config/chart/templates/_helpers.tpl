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

{{/* configure gives a pod that uses modules the image, the libraries and the place that the values name: dict "root" $ "pod" POD */}}
{{- define "keyconvoy.configure" }}
{{- $values := .root.Values }}
{{- $pod := .pod }}
{{- $container := first $pod.containers }}
{{- $args := $container.args }}
{{- $env := $container.env }}
{{- $mounts := default list $container.volumeMounts }}
{{- $volumes := default list $pod.volumes }}
{{- range $library := $values.libraries }}
{{- $args = concat $args (include "keyconvoy.libraryArgs" $library | fromYamlArray) }}
{{- $env = concat $env (default list $library.environment) }}
{{- range $library.volumes }}
{{- $mounts = append $mounts (dict "name" .name "mountPath" .mountPath "readOnly" (ne .readOnly false)) }}
{{- $volumes = append $volumes (omit . "mountPath" "readOnly") }}
{{- end }}
{{- end }}
{{- $tag := default .root.Chart.AppVersion $values.image.tag }}
{{- $_ := set $container "image" (include "keyconvoy.image" (dict "repository" $values.image.repository "digest" $values.image.digest "tag" $tag)) }}
{{- $_ := set $container "args" $args }}
{{- $_ := set $container "env" $env }}
{{- with $mounts }}
{{- $_ := set $container "volumeMounts" . }}
{{- end }}
{{- with $volumes }}
{{- $_ := set $pod "volumes" . }}
{{- end }}
{{- with $values.initContainers }}
{{- $_ := set $pod "initContainers" . }}
{{- end }}
{{- with $values.fsGroup }}
{{- $_ := set $pod.securityContext "fsGroup" (int64 .) }}
{{- end }}
{{- with $values.nodeSelector }}
{{- $_ := set $pod "nodeSelector" . }}
{{- end }}
{{- with $values.tolerations }}
{{- $_ := set $pod "tolerations" . }}
{{- end }}
{{- include "keyconvoy.pullSecrets" . }}
{{- end }}

{{/* pullSecrets gives a pod the Secrets for its image: dict "root" $ "pod" POD */}}
{{- define "keyconvoy.pullSecrets" }}
{{- $secrets := list }}
{{- range .root.Values.image.pullSecrets }}
{{- $secrets = append $secrets (dict "name" .) }}
{{- end }}
{{- if $secrets }}
{{- $_ := set .pod "imagePullSecrets" $secrets }}
{{- end }}
{{- end }}
