#!/bin/sh
# Installs sluice as a systemd service.
#
#   curl -sfL https://HOST/install.sh | [ENV] sh -s - [agent|server] [flags of that command]
#
# A node joins a cluster when SLUICE_URL and SLUICE_TOKEN (or SLUICE_TOKEN_FILE) are set; else it is on its own.
#
#   INSTALL_SLUICE_SKIP_DOWNLOAD  use the binary at INSTALL_SLUICE_BIN_DIR/sluice (air gap)
#   INSTALL_SLUICE_BINARY         install this file instead of downloading one
#   INSTALL_SLUICE_URL            where releases are; no default is built in
#   INSTALL_SLUICE_VERSION        release to install [latest]
#   INSTALL_SLUICE_BIN_DIR        [/usr/local/bin]
#   INSTALL_SLUICE_SYSTEMD_DIR    [/etc/systemd/system]
#   INSTALL_SLUICE_SKIP_ENABLE, INSTALL_SLUICE_SKIP_START
#   SLUICE_*                      kept for the service, see `sluice agent --help`
#
# On a node with an agent the unit of `sluice relay` is written too; `systemctl enable --now sluice-relay` starts it
# (settings: /etc/sluice/relay.env, see `sluice relay --help`).
set -eu

fatal() { echo "error: $*" >&2; exit 1; }
info() { echo "sluice: $*"; }

role=agent
case "${1:-}" in agent | server) role=$1; shift ;; esac
bin_dir=${INSTALL_SLUICE_BIN_DIR:-/usr/local/bin}
systemd_dir=${INSTALL_SLUICE_SYSTEMD_DIR:-/etc/systemd/system}
etc_dir=/etc/sluice
unit=sluice-$role.service

[ "$(id -u)" = 0 ] || fatal "run as root"
[ "$(uname -s)" = Linux ] || fatal "sluice runs on Linux"
case $(uname -m) in x86_64 | amd64) arch=amd64 ;; aarch64 | arm64) arch=arm64 ;; *) fatal "no build for $(uname -m)" ;; esac
if [ -n "${SLUICE_URL:-}" ] && [ -z "${SLUICE_TOKEN:-}${SLUICE_TOKEN_FILE:-}" ]; then
	fatal "SLUICE_URL is set: SLUICE_TOKEN or SLUICE_TOKEN_FILE is needed to join"
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM

fetch() { # fetch URL FILE
	if command -v curl >/dev/null; then curl -sfL --proto '=https' -o "$2" "$1"
	elif command -v wget >/dev/null; then wget -q --https-only -O "$2" "$1"
	else fatal "curl or wget is needed"; fi || fatal "cannot download $1"
}

place() { # place FILE: checked to run before it replaces anything
	chmod 0755 "$1"
	"$1" --version >/dev/null 2>&1 || fatal "$1 does not run on this machine"
	mkdir -p "$bin_dir"
	cp "$1" "$bin_dir/.sluice.new"
	chmod 0755 "$bin_dir/.sluice.new"
	mv "$bin_dir/.sluice.new" "$bin_dir/sluice"
}

if [ -n "${INSTALL_SLUICE_BINARY:-}" ]; then
	cp "$INSTALL_SLUICE_BINARY" "$tmp/sluice" || fatal "cannot read $INSTALL_SLUICE_BINARY"
	place "$tmp/sluice"
elif [ -n "${INSTALL_SLUICE_SKIP_DOWNLOAD:-}" ]; then
	[ -x "$bin_dir/sluice" ] || fatal "$bin_dir/sluice is not there"
else
	[ -n "${INSTALL_SLUICE_URL:-}" ] || fatal "set INSTALL_SLUICE_URL, INSTALL_SLUICE_BINARY or INSTALL_SLUICE_SKIP_DOWNLOAD"
	version=${INSTALL_SLUICE_VERSION:-latest}
	info "downloading $version for $arch"
	fetch "$INSTALL_SLUICE_URL/$version/sluice-linux-$arch" "$tmp/sluice"
	fetch "$INSTALL_SLUICE_URL/$version/sha256sum-$arch.txt" "$tmp/sums"
	want=$(awk -v name="sluice-linux-$arch" '$2 == name || $2 == "*" name { print $1 }' "$tmp/sums")
	have=$(sha256sum "$tmp/sluice" | cut -d' ' -f1)
	[ -n "$want" ] && [ "$want" = "$have" ] || fatal "the checksum of the download is not the published one"
	place "$tmp/sluice"
fi
info "$("$bin_dir/sluice" --version) in $bin_dir"

umask 077
mkdir -p "$etc_dir"
if [ -n "${SLUICE_TOKEN:-}" ]; then
	printf '%s\n' "$SLUICE_TOKEN" >"$etc_dir/token"
	SLUICE_TOKEN_FILE=$etc_dir/token
	export SLUICE_TOKEN_FILE
fi
# systemd reads VALUE between double quotes with backslash escapes.
env | grep '^SLUICE_' | grep -v '^SLUICE_TOKEN=' | sed 's/\\/\\\\/g; s/"/\\"/g; s/=/="/; s/$/"/' >"$etc_dir/$role.env.new" || true
mv "$etc_dir/$role.env.new" "$etc_dir/$role.env"

flags=
for flag in "$@"; do
	flags="$flags \"$(printf '%s' "$flag" | sed 's/[\\"$%]/\\&/g')\""
done
[ -d "$systemd_dir" ] || fatal "$systemd_dir is not there: run $bin_dir/sluice $role$flags under your service manager"

capabilities='CAP_BPF CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_DAC_READ_SEARCH'
kind=notify
[ "$role" = server ] && { capabilities=; kind=exec; }
umask 022
cat >"$systemd_dir/$unit" <<UNIT
[Unit]
Description=sluice $role
After=network-online.target
Wants=network-online.target

[Service]
Type=$kind
EnvironmentFile=-$etc_dir/$role.env
ExecStart=$bin_dir/sluice $role$flags
Restart=always
RestartSec=1
KillMode=process
LimitNOFILE=1048576
StateDirectory=sluice
StateDirectoryMode=0700
RuntimeDirectory=sluice
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
CapabilityBoundingSet=$capabilities
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
UNIT

# The flows of all nodes in one place: wanted on some nodes only, so it is written and neither enabled nor started.
if [ "$role" = agent ]; then
	cat >"$systemd_dir/sluice-relay.service" <<RELAY_UNIT
[Unit]
Description=sluice relay
After=network-online.target sluice-agent.service
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=-$etc_dir/relay.env
ExecStart=$bin_dir/sluice relay
Restart=always
RestartSec=1
LimitNOFILE=65536
StateDirectory=sluice
StateDirectoryMode=0700
RuntimeDirectory=sluice
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
MemoryDenyWriteExecute=yes

[Install]
WantedBy=multi-user.target
RELAY_UNIT
fi

cat >"$bin_dir/sluice-uninstall.sh" <<UNINSTALL
#!/bin/sh
# Removes the sluice services and binary. State (/var/lib/sluice) stays unless --purge is given.
# The programs in the kernel are taken off: NOTHING IS ENFORCED ANY MORE.
set -eu
[ "\$(id -u)" = 0 ] || { echo "run as root" >&2; exit 1; }
for unit in sluice-agent.service sluice-server.service sluice-relay.service; do
	if [ -e "$systemd_dir/\$unit" ]; then
		systemctl disable --now "\$unit" 2>/dev/null || true
		rm -f "$systemd_dir/\$unit"
	fi
done
systemctl daemon-reload 2>/dev/null || true
rm -rf /sys/fs/bpf/sluice /run/sluice "$etc_dir"
[ "\${1:-}" = --purge ] && rm -rf /var/lib/sluice
rm -f "$bin_dir/sluice" "$bin_dir/sluice-uninstall.sh"
UNINSTALL
chmod 0755 "$bin_dir/sluice-uninstall.sh"

if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	[ -n "${INSTALL_SLUICE_SKIP_ENABLE:-}" ] || systemctl enable "$unit"
	if [ -z "${INSTALL_SLUICE_SKIP_START:-}" ]; then
		systemctl restart "$unit"
		info "started; see: sluice status"
	fi
else
	info "no systemd here: $systemd_dir/$unit is written, start $bin_dir/sluice $role yourself"
fi
