{{- define "serinus.fullname" -}}
{{- default (printf "%s" .Release.Name) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "serinus.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "serinus.labels" -}}
{{ include "serinus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "serinus.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "serinus.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* The settings with the paths that the pod has; what the user wrote wins where both speak. */}}
{{- define "serinus.settings" -}}
{{- $api := dict "host" "0.0.0.0" "port" 8080 "tokens_file" "/etc/serinus/secrets/api/tokens.yaml" -}}
{{- $mine := dict "config_dir" "/etc/serinus/config" "stop_within" (printf "%ds" (int .Values.stopSeconds)) "api" $api -}}
{{- if .Values.secrets.pagerduty -}}{{- $_ := set $mine "pagerduty" (dict "routing_key_file" "/etc/serinus/secrets/pagerduty/routing-key") -}}{{- end -}}
{{- if .Values.secrets.prometheus -}}{{- $_ := set $mine "prometheus" (dict "token_file" "/etc/serinus/secrets/prometheus/token") -}}{{- end -}}
{{- if .Values.secrets.loki -}}{{- $_ := set $mine "loki" (dict "token_file" "/etc/serinus/secrets/loki/token") -}}{{- end -}}
{{- if .Values.secrets.kafka -}}{{- $_ := set $mine "kafka" (dict "password_file" "/etc/serinus/secrets/kafka/password") -}}{{- end -}}
{{- if .Values.secrets.database -}}{{- $_ := set $mine "database" (dict "password_file" "/etc/serinus/secrets/database/password") -}}{{- end -}}
{{- if .Values.export.existingClaim -}}{{- $_ := set $mine "retention" (dict "export_dir" "/var/lib/serinus-export") -}}{{- end -}}
{{- toYaml (mergeOverwrite $mine (deepCopy .Values.config)) -}}
{{- end -}}
