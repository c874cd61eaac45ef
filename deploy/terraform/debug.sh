#!/bin/sh
# Terraform with its debug log, when there is no other way. That log has the bodies of requests, and so what nobody
# else may read: it goes into a file that its owner alone can read, the core's part only, is looked through for secrets
# and gone at the end.
#
#   deploy/terraform/debug.sh plan -var-file=environments/dev.tfvars
#   deploy/terraform/debug.sh --providers apply dev.tfplan      # what providers say, too: bodies
set -eu
umask 077
log=$(mktemp "${TMPDIR:-/tmp}/terraform-debug-XXXXXX")
trap 'shred --remove "$log"' EXIT INT TERM

export TF_LOG_CORE=debug TF_LOG_PATH="$log"
unset TF_LOG
if [ "${1-}" = --providers ]; then
    shift
    export TF_LOG_PROVIDER=debug
fi
status=0
terraform "$@" || status=$?

if ! wootz secrets scan "$log"; then
    echo "There are secrets in this log: show it to nobody." >&2
fi
${PAGER:-less} "$log"
exit "$status"
