{{- /* What comes before `mutating-webhook` in the name of that configuration. */}}
{{- define "sgp.prefix" -}}
{{ .Values.webhookConfigurationPrefix | default (eq .Values.backend "eks" | ternary "sgp-" "vpc-resource-") }}
{{- end }}

{{- /* (root, path): a file with the names of the webhook configurations, wherever they stand. */}}
{{- define "sgp.file" -}}
{{- $root := index . 0 }}
{{- $text := $root.Files.Get (index . 1) }}
{{- range $kind := list "mutating-webhook" "validating-webhook" }}
{{- $text = $text | replace (print "vpc-resource-" $kind) (print (include "sgp.prefix" $root) $kind) }}
{{- end }}
{{- $text }}
{{- end }}

{{- /* (root, object): not empty if the object is to be installed. */}}
{{- define "sgp.wanted" -}}
{{- $values := (index . 0).Values }}
{{- $object := index . 1 }}
{{- if eq $object.kind "Namespace" }}
{{- if $values.createNamespace }}yes{{ end }}
{{- else if eq $object.kind "NetworkPolicy" }}
{{- if $values.networkPolicy.enabled }}yes{{ end }}
{{- else if eq $object.metadata.name "sgp-interfaces" }}
{{- if eq $values.backend "ec2" }}yes{{ end }}
{{- else }}yes{{ end }}
{{- end }}

{{- /* (root, Deployment): sets in the object what the values say. */}}
{{- define "sgp.setDeployment" -}}
{{- $root := index . 0 }}
{{- $values := $root.Values }}
{{- $spec := (index . 1).spec }}
{{- $pod := $spec.template.spec }}
{{- $_ := set $spec "replicas" $values.replicas }}
{{- with $values.imagePullSecrets }}
{{- $_ := set $pod "imagePullSecrets" . }}
{{- end }}
{{- $flags := dict "webhook" list "allocator" list }}
{{- $prefix := include "sgp.prefix" $root }}
{{- if ne $prefix "vpc-resource-" }}
{{- $_ := set $flags "webhook" (list (print "--webhook-configuration=" $prefix "mutating-webhook") (print "--validating-webhook-configuration=" $prefix "validating-webhook")) }}
{{- end }}
{{- if $values.certificateSecret }}
{{- /* As ../../certs/kustomization.yaml does it. */}}
{{- $_ := set $flags "webhook" (concat $flags.webhook (list "--tls-cert=/tls/tls.crt" "--tls-key=/tls/tls.key")) }}
{{- $_ := set $pod "volumes" (append $pod.volumes (dict "name" "tls" "secret" (dict "secretName" $values.certificateSecret "defaultMode" 0440))) }}
{{- $_ := set $pod.securityContext "fsGroup" $pod.securityContext.runAsGroup }}
{{- end }}
{{- if ne $values.backend "ec2" }}
{{- $_ := set $flags "allocator" (list (print "--eni-backend=" $values.backend)) }}
{{- end }}
{{- range $container := $pod.containers }}
{{- $own := get $values $container.name }}
{{- $_ := set $container "image" (print $values.image.repository ":" $values.image.tag) }}
{{- $_ := set $container "imagePullPolicy" $values.image.pullPolicy }}
{{- $_ := set $container "args" (concat $container.args (get $flags $container.name) $own.extraArgs) }}
{{- if and $values.certificateSecret (eq $container.name "webhook") }}
{{- $_ := set $container "volumeMounts" (append $container.volumeMounts (dict "name" "tls" "mountPath" "/tls" "readOnly" true)) }}
{{- end }}
{{- with $own.resources }}
{{- $_ := set $container "resources" . }}
{{- end }}
{{- end }}
{{- end }}
