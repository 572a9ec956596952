#!/bin/sh
# Makes a CA and a serving certificate for the webhook. README.md beside this file says when
# that is needed.
set -eu

DEFAULT_NAME=sgp-webhook.sgp-system.svc
DEFAULT_DAYS=365
DEFAULT_PREFIX=vpc-resource-

usage() {
    cat <<END
Usage: certs/make.sh [OPTION...] FOLDER [NAME...]

Makes a CA and a serving certificate (ECDSA P-256) for the webhook, and prints the commands
that bring them into the cluster:

  FOLDER/ca.crt   the CA, which clients have to trust
  FOLDER/tls.crt  the serving certificate, for --tls-cert
  FOLDER/tls.key  its private key, for --tls-key; only its owner can read it

The CA's key is deleted at once: the CA signs this one certificate and no other. Files that
are there already are not overwritten.

  NAME            DNS name or IP address that clients call the webhook by
                  (default: $DEFAULT_NAME)
  --days DAYS     validity of both certificates in days (default: $DEFAULT_DAYS)
  --keep-ca FILE  for a renewal: the CA in use, which the printed commands let the API server
                  trust until the webhook serves the new certificate
  --configuration-prefix PREFIX
                  what the names of the webhook configurations begin with, before
                  mutating-webhook and validating-webhook; sgp- beside EKS's own
                  (default: $DEFAULT_PREFIX)
  --help          print this help
END
}

fail() {
    printf 'certs/make.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# The names as the value of subjectAltName.
alternative_names() {
    list=
    for name; do
        case $name in
            '' | *[!0-9A-Za-z.:*-]*) fail "\"$name\" is neither a DNS name nor an IP address" 2 ;;
            *:*) list="$list,IP:$name" ;;
            *[!0-9.]*) list="$list,DNS:$name" ;;
            *) list="$list,IP:$name" ;;
        esac
    done
    printf '%s\n' "${list#,}"
}

new_key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 \
        -pkeyopt ec_param_enc:named_curve -out "$1"
}

serial() {
    # The first bit is 0, because serial numbers are positive.
    printf '0x1%s' "$(openssl rand -hex 16 | cut -c 2-)"
}

days=$DEFAULT_DAYS
prefix=$DEFAULT_PREFIX
kept=
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit ;;
        --days) [ $# -ge 2 ] || fail '--days needs a number' 2; days=$2; shift 2 ;;
        --days=*) days=${1#--days=}; shift ;;
        --keep-ca) [ $# -ge 2 ] || fail '--keep-ca needs a file' 2; kept=$2; shift 2 ;;
        --keep-ca=*) kept=${1#--keep-ca=}; shift ;;
        --configuration-prefix)
            [ $# -ge 2 ] || fail '--configuration-prefix needs a text' 2; prefix=$2; shift 2 ;;
        --configuration-prefix=*) prefix=${1#--configuration-prefix=}; shift ;;
        --) shift; break ;;
        -*) fail "unknown option $1; --help lists what there is" 2 ;;
        *) break ;;
    esac
done
case $days in
    '' | *[!0-9]* | 0*) fail "--days takes a whole number from 1 up, not \"$days\"" 2 ;;
esac
case $prefix in
    '' | *[!0-9a-z.-]* | [!0-9a-z]*)
        fail "--configuration-prefix takes a-z, 0-9, - and ., not \"$prefix\"" 2 ;;
esac
[ $# -ge 1 ] || fail 'no folder is given; --help shows how to call this' 2
folder=$1
shift
[ $# -ge 1 ] || set -- "$DEFAULT_NAME"
names=$(alternative_names "$@")

command -v openssl >/dev/null || fail 'there is no openssl command; install the package openssl'
[ -z "$kept" ] || openssl x509 -in "$kept" -noout 2>/dev/null ||
    fail "--keep-ca $kept holds no certificate; give the ca.crt that was made before"
for file in ca.crt tls.crt tls.key; do
    [ ! -e "$folder/$file" ] || fail "$folder/$file is there already and is not overwritten"
done

umask 077
mkdir -p "$folder"
# Beside the results, so that they can be moved into place in one step.
work=$(mktemp -d "$folder/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$work/openssl.cnf" <<END
[req]
distinguished_name = subject
prompt = no
[subject]
CN = sgp webhook CA
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[serving]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END

# What openssl says is shown only if it fails.
make() {
    new_key "$work/ca.key" &&
        openssl req -x509 -new -sha256 -config "$work/openssl.cnf" -extensions ca \
            -key "$work/ca.key" -set_serial "$(serial)" -days "$days" -out "$work/ca.crt" &&
        new_key "$work/tls.key" &&
        openssl req -new -sha256 -config "$work/openssl.cnf" -subj '/CN=sgp webhook' \
            -key "$work/tls.key" -out "$work/tls.csr" &&
        openssl x509 -req -sha256 -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" \
            -set_serial "$(serial)" -days "$days" \
            -extfile "$work/openssl.cnf" -extensions serving -out "$work/tls.crt" &&
        openssl verify -CAfile "$work/ca.crt" "$work/tls.crt"
}
if ! make >"$work/log" 2>&1; then
    cat "$work/log" >&2
    fail 'openssl failed'
fi

chmod 644 "$work/ca.crt" "$work/tls.crt"
mv "$work/ca.crt" "$work/tls.crt" "$work/tls.key" "$folder/"

# The commands that write the CAs that $1 prints into all entries of both configurations.
print_trust() {
    cat <<END
  ca=\$($1 | base64 | tr -d '\n')
  for kind in mutating validating; do
    configuration=\${kind}webhookconfiguration/$prefix\$kind-webhook
    entries=\$(kubectl get "\$configuration" -o 'jsonpath={.webhooks[*].name}' | wc -w)
    kubectl patch "\$configuration" --type=json -p "[\$(seq 0 \$((entries - 1)) | sed \\
      's|.*|{"op": "add", "path": "/webhooks/&/clientConfig/caBundle", "value": "'\$ca'"}|' |
      paste -sd , -)]"
  done

END
}

cat <<END
Made $folder/ca.crt, $folder/tls.crt and $folder/tls.key,
valid for $days days, for $names.

END
secret="kubectl -n sgp-system create secret tls sgp-webhook-tls \\
    --cert='$folder/tls.crt' --key='$folder/tls.key'"
if [ -z "$kept" ]; then
    cat <<END
Next, give the pair to the webhook and the CA to the API server:

  $secret

END
    print_trust "cat '$folder/ca.crt'"
    echo 'certs/README.md says how the Deployment comes to mount the Secret.'
else
    cat <<END
First, let the API server trust the old CA and the new one:

END
    # The old file may lack the end of its last line.
    print_trust "{ cat '$kept'; echo; cat '$folder/ca.crt'; }"
    cat <<END
Half a minute later every API server knows that. Then replace the pair:

  $secret \\
    --dry-run=client -o yaml | kubectl replace -f -

Kubelets bring it to the pods within about a minute. When sgp_certificate_changes_total has gone
up on every pod, take the old CA away:

END
    print_trust "cat '$folder/ca.crt'"
fi
