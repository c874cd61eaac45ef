{{- /* What the gateway's and the engine's pods have in common. */ -}}

{{- define "wootz.labels" -}}
app.kubernetes.io/name: wootz
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wootz.image" -}}
{{ .repository }}{{ with .digest }}@{{ . }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "wootz.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "wootz.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Alive: the process answers, whatever its models do. Ready: all that it was configured with works now. */ -}}
{{- define "wootz.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
lifecycle:
  preStop:
    exec: {command: [sleep, {{ .Values.preStopSeconds | quote }}]}
{{- end }}

{{- /* The wait for balancers, the drain, what cut answers get for their records (3 s), the engines' end (10 s), a margin. */ -}}
{{- define "wootz.grace" -}}
{{ add .Values.preStopSeconds .Values.drainSeconds 20 }}
{{- end }}

{{- define "wootz.mounts" -}}
- {name: config, mountPath: /etc/wootz, readOnly: true}
- {name: secrets, mountPath: /run/secrets/wootz, readOnly: true}
- {name: home, mountPath: /var/lib/wootz}
- {name: tmp, mountPath: /tmp}
{{- if .Values.filesClaim }}
- {name: files, mountPath: /var/lib/wootz-files}
{{- end }}
{{- if .Values.vault.enabled }}
- {name: identity, mountPath: /run/secrets/identity, readOnly: true}
{{- end }}
{{- end }}

{{- define "wootz.volumes" -}}
# Whole folders, not single files: those Kubernetes never renews.
- name: secrets
  secret: {secretName: {{ .Values.existingSecret }}, defaultMode: 0440}
- name: home
  emptyDir: {sizeLimit: 2Gi}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with .Values.filesClaim }}
- name: files
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- if .Values.vault.enabled }}
- name: identity
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, audience: {{ .Values.vault.audience }}, expirationSeconds: 3600}
{{- end }}
{{- end }}
