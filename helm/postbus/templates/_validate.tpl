{{/*
Everything that concerns more than one value. The schema sees to single values.
Each check that fails adds a line: the path, what is wrong, what would be right. All are shown at once.
*/}}
{{- define "postbus.validate" -}}
{{- $wrong := list -}}
{{- $config := .Values.config -}}
{{- $listeners := $config.listeners | default dict -}}
{{- $outside := ne .Values.service.type "ClusterIP" -}}

{{- /* The same container port or port name twice would be refused by the cluster, or silently reach the wrong listener. */ -}}
{{- $adminPort := include "postbus.port" $config.sidecar.address -}}
{{- if not $adminPort -}}
{{- $wrong = append $wrong (printf "config.sidecar.address: %q has no port; the probes need one, as in 0.0.0.0:8080" $config.sidecar.address) -}}
{{- else if regexMatch "^(127\\.|localhost:|\\[::1\\])" $config.sidecar.address -}}
{{- $wrong = append $wrong (printf "config.sidecar.address: %q is the pod's loopback; the kubelet's probes would never get an answer, use 0.0.0.0" $config.sidecar.address) -}}
{{- end -}}
{{- if eq (toString $config.sidecar.enabled) "false" -}}
{{- $wrong = append $wrong "config.sidecar.enabled: the probes need it; leave it true" -}}
{{- end -}}
{{- $ports := dict $adminPort "config.sidecar.address" -}}
{{- $names := dict "admin" "the admin port" -}}
{{- range $name, $listener := $listeners -}}
{{- $path := printf "config.listeners.%s" $name -}}
{{- $port := include "postbus.port" ($listener.address | default "") -}}
{{- if not $listener.address -}}
{{- $wrong = append $wrong (printf "%s.address: is missing; the application's default is the pod's loopback, use for example 0.0.0.0:2525" $path) -}}
{{- end -}}
{{- if $port -}}
{{- if lt (int $port) 1024 -}}
{{- $wrong = append $wrong (printf "%s.address: port %s needs a privilege the pod does not have; listen above 1023 and map it in service.ports" $path $port) -}}
{{- end -}}
{{- if hasKey $ports $port -}}
{{- $wrong = append $wrong (printf "%s.address: port %s is taken by %s" $path $port (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port (printf "%s.address" $path) -}}
{{- $portName := include "postbus.portName" $name -}}
{{- if hasKey $names $portName -}}
{{- $wrong = append $wrong (printf "%s: as the name of a port this is %q, which %s has already; choose a name that differs in its first 15 characters" $path $portName (get $names $portName)) -}}
{{- end -}}
{{- if not (regexMatch "[a-z]" $portName) -}}
{{- $wrong = append $wrong (printf "%s: the name of a port needs a letter in its first 15 characters" $path) -}}
{{- end -}}
{{- $_ := set $names $portName $path -}}
{{- end -}}
{{- end -}}

{{- range $name, $port := .Values.service.ports -}}
{{- $path := printf "service.ports.%s" $name -}}
{{- $listener := get $listeners $name -}}
{{- if not $listener -}}
{{- $wrong = append $wrong (printf "%s: there is no listener of that name; config.listeners has: %s" $path (keys $listeners | sortAlpha | join ", ")) -}}
{{- else -}}
{{- $address := $listener.address | default "" -}}
{{- if and $address (not (include "postbus.port" $address)) -}}
{{- $wrong = append $wrong (printf "%s: the listener has no TCP port (%s)" $path $address) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" $address -}}
{{- $wrong = append $wrong (printf "%s: the listener is on the pod's loopback (%s), which no Service reaches; use 0.0.0.0" $path $address) -}}
{{- end -}}
{{- if and $outside (eq ($listener.protocol | default "smtp") "lmtp") -}}
{{- $wrong = append $wrong (printf "%s: LMTP must not be offered outside the cluster (RFC 2033 s5); keep service.type ClusterIP or leave this port out" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* An allow-list sees the client's address only under Local. */ -}}
{{- if and $outside (eq .Values.service.externalTrafficPolicy "Cluster") .Values.service.loadBalancerSourceRanges -}}
{{- $wrong = append $wrong "service.loadBalancerSourceRanges: with service.externalTrafficPolicy Cluster the client's address is lost; use Local" -}}
{{- end -}}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") -}}
{{- $wrong = append $wrong (printf "service.loadBalancerSourceRanges: has no effect with service.type %s; use LoadBalancer or networkPolicy.mailFrom" .Values.service.type) -}}
{{- end -}}

{{- /* A 250 promises that the mail is safe. */ -}}
{{- if and (not .Values.persistence.enabled) (not .Values.ephemeralSpool.acceptLoss) -}}
{{- $remedy := "set persistence.enabled, or acceptance: hold, or for a trial ephemeralSpool.acceptLoss" -}}
{{- if eq ($config.acceptance | default "spool") "spool" -}}
{{- $wrong = append $wrong (printf "config.acceptance: spool without a volume loses accepted mail with its node; %s" $remedy) -}}
{{- end -}}
{{- range $index, $route := $config.routes -}}
{{- if eq ($route.acceptance | default "hold") "spool" -}}
{{- $wrong = append $wrong (printf "config.routes[%d].acceptance: spool without a volume loses accepted mail with its node; %s" $index $remedy) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if not (regexMatch "^/[^/]+/.*[^/]$" $config.spool.folder) -}}
{{- $wrong = append $wrong (printf "config.spool.folder: %q is not a folder in a volume; its parent becomes the mount, as in /var/spool/postbus/data" $config.spool.folder) -}}
{{- end -}}
{{- /* The kubelet evicts a pod whose emptyDir is too full, and a full volume stops deliveries: the spool has to stop before that. */ -}}
{{- $room := ternary .Values.persistence.size .Values.ephemeralSpool.sizeLimit .Values.persistence.enabled -}}
{{- $roomPath := ternary "persistence.size" "ephemeralSpool.sizeLimit" .Values.persistence.enabled -}}
{{- $most := $config.spool.max_octets | default 8589934592 | int64 -}}
{{- if gt (add $most 268435456) (include "postbus.octets" $room | int64) -}}
{{- $wrong = append $wrong (printf "config.spool.max_octets: %d and 256 MiB for logs do not fit into %s (%s); lower one or raise the other" $most $roomPath (toString $room)) -}}
{{- end -}}
{{- $storage := index (.Values.resources.limits | default dict) "ephemeral-storage" -}}
{{- if and $storage (not .Values.persistence.enabled) (lt (include "postbus.octets" $storage | int64) (include "postbus.octets" $room | int64)) -}}
{{- $wrong = append $wrong (printf "resources.limits.ephemeral-storage: %s is less than ephemeralSpool.sizeLimit (%s); the pod would be evicted before its spool is full" (toString $storage) (toString $room)) -}}
{{- end -}}

{{- /* Since Kubernetes 1.28 one process over the limit ends the whole container, not itself alone. */ -}}
{{- with (.Values.resources.limits | default dict).memory -}}
{{- $needed := include "postbus.leastMemoryOctets" $ | int64 -}}
{{- if lt (include "postbus.octets" . | int64) $needed -}}
{{- $wrong = append $wrong (printf "resources.limits.memory: %s is less than what config allows to be in memory, %d octets (parsing.workers x parsing.memory_max_octets + hold.in_flight_max_octets + dispatch.in_flight_max_octets + 256 MiB)" (toString .) $needed) -}}
{{- end -}}
{{- end -}}

{{- $least := include "postbus.leastGraceSeconds" . | int -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int .) $least -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds: %d would kill a pod that is still draining; preStopSleepSeconds %d + config.drain_timeout_s %s + 15 to flush = %d" (int .) (int $.Values.preStopSleepSeconds) (include "postbus.drainSeconds" $) $least) -}}
{{- end -}}
{{- end -}}

{{- /* What the configuration refers to must be mounted. */ -}}
{{- $text := toJson $config -}}
{{- if and (contains "\"/etc/postbus/tls/" $text) (not .Values.tls.existingSecret) -}}
{{- $wrong = append $wrong "tls.existingSecret: is empty, but config refers to a file under /etc/postbus/tls" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret (not (contains "\"/etc/postbus/tls/" $text)) -}}
{{- $wrong = append $wrong "tls.existingSecret: no listener uses it; set config.listeners.<name>.tls.certificate to /etc/postbus/tls/tls.crt and .key to /etc/postbus/tls/tls.key" -}}
{{- end -}}
{{- range $reference := regexFindAll "\"/etc/postbus/secrets/[^/\"]+" $text -1 | uniq -}}
{{- $name := $reference | replace "\"/etc/postbus/secrets/" "" -}}
{{- if not (hasKey $.Values.secrets $name) -}}
{{- $wrong = append $wrong (printf "secrets.%s: is missing, but config refers to a file under /etc/postbus/secrets/%s" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if not .Values.extraEnvFrom -}}
{{- $known := list -}}
{{- range .Values.extraEnv -}}{{- $known = append $known .name -}}{{- end -}}
{{- range $reference := regexFindAll "\"([a-z_]+_)?env\":\"[^\"]+\"" $text -1 | uniq -}}
{{- $name := regexReplaceAll "^.*:\"|\"$" $reference "" -}}
{{- if not (has $name $known) -}}
{{- $wrong = append $wrong (printf "extraEnv: has no %s, but config refers to that variable" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n\n%d value(s) to correct:\n  - %s\n" (len $wrong) (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}
