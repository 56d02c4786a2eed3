#!/bin/sh
# usage: build.sh OUT [PACKAGE]
set -e
cd "$(dirname "$0")"
OUT=$1
PACKAGE=${2:-.}
V=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
MINOR=$(echo "$V" | cut -d. -f2)
P=k8s.io/component-base/version
CGO_ENABLED=0 exec go build -trimpath -ldflags "-s -w -X $P.gitVersion=$V -X $P.gitMajor=1 -X $P.gitMinor=$MINOR -X $P.gitCommit=test -X $P.gitTreeState=clean" -o "$OUT" "$PACKAGE"
