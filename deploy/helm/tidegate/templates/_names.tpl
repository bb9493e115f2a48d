{{- define "tidegate.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "tidegate.tls" -}}
{{- if and (eq .Values.flavour "edge") .Values.edge.tlsSecret }}https{{ end }}
{{- end }}
{{- define "tidegate.keys" -}}
{{- if and (ne .Values.flavour "epp") .Values.keysSecretName }}keys{{ end }}
{{- end }}
{{- define "tidegate.rules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if ne .Values.flavour "epp" }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [list, watch]
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferencepools, inferencemodels, inferencemodelrewrites, inferenceobjectives]
  verbs: [list, watch]
- apiGroups: [llm-d.ai]
  resources: [inferencemodelrewrites, inferenceobjectives]
  verbs: [list, watch]
{{- if ne .Values.flavour "epp" }}
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferencemodels/status]
  verbs: [patch]
{{- end }}
{{- end }}
