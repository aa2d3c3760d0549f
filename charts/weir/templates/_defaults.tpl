{{/*
Completes .Values with the defaults of the keys that are missing: those that were set to null, and those
that are newer than the release whose values `helm upgrade --reuse-values` takes. All templates share
.Values, so the first call completes them; every template starts with one, because Helm renders
templates in no fixed order. files/defaults.yaml is generated from values.yaml.
*/}}
{{- define "weir.complete" -}}
{{- if not (hasKey .Values "completed") -}}
{{- $values := .Values -}}
{{- range $path, $default := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- $keys := splitList "." $path -}}
{{- $section := $values -}}
{{- range initial $keys -}}
{{- if not (kindIs "map" (index $section .)) -}}
{{- $_ := set $section . dict -}}
{{- end -}}
{{- $section = index $section . -}}
{{- end -}}
{{- if kindIs "invalid" (index $section (last $keys)) -}}
{{- $_ := set $section (last $keys) $default -}}
{{- end -}}
{{- end -}}
{{- $_ := set $values "completed" true -}}
{{- end -}}
{{- end -}}
