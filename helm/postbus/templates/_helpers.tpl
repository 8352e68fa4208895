{{/* The name of everything in the release: the release's name, which holds the chart's name or gets it appended. */}}
{{- define "postbus.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "postbus.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "postbus.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "postbus.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The labels that choose the pods. They can never change in a release, so they are these two and no more. */}}
{{- define "postbus.selector" -}}
app.kubernetes.io/name: {{ include "postbus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "postbus.labels" -}}
{{ include "postbus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "postbus.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "postbus.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* A digest wins over a tag; the tag's default is the application's version. */}}
{{- define "postbus.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The port at the end of an address such as 0.0.0.0:2525 or [::]:2525; nothing for a Unix socket. */}}
{{- define "postbus.port" -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" (toString .)) -}}
{{- end -}}

{{/* A listener's name as a port's name: at most 15 letters, digits and dashes (RFC 6335 s5.1). */}}
{{- define "postbus.portName" -}}
{{- . | replace "_" "-" | trunc 15 | trimSuffix "-" -}}
{{- end -}}

{{/* Seconds the application may take to drain: the configuration's, or the application's own default. */}}
{{- define "postbus.drainSeconds" -}}
{{- .Values.config.drain_timeout_s | default 120 -}}
{{- end -}}

{{/* What ending takes: the sleep before SIGTERM, the drain, and 15 s to flush events and telemetry. */}}
{{- define "postbus.leastGraceSeconds" -}}
{{- add .Values.preStopSleepSeconds (include "postbus.drainSeconds" . | float64 | ceil | int) 15 -}}
{{- end -}}

{{/* A quantity such as 10Gi or 500M in octets. */}}
{{- define "postbus.octets" -}}
{{- $factors := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- mulf (float64 $number) (get $factors (trimPrefix $number (toString .)) | default 1 | float64) | int64 -}}
{{- end -}}

{{/* Octets of memory the configuration lets the container need: parser processes, mail being held and sent, and 256 MiB for the process itself. */}}
{{- define "postbus.leastMemoryOctets" -}}
{{- $parsing := .Values.config.parsing | default dict -}}
{{- $workers := mul ($parsing.workers | default 2 | int64) ($parsing.memory_max_octets | default 536870912 | int64) -}}
{{- $held := (.Values.config.hold | default dict).in_flight_max_octets | default 268435456 | int64 -}}
{{- $sent := (.Values.config.dispatch | default dict).in_flight_max_octets | default 67108864 | int64 -}}
{{- add $workers $held $sent 268435456 -}}
{{- end -}}
