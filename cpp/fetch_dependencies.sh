#!/bin/sh
# Headers and link names that the C++ library is built with, into a folder of their own; nothing is installed.
#
#   cpp/fetch_dependencies.sh [FOLDER]        FOLDER is build/cpp-deps unless given; root is not needed
#
# From the Debian mirror that the machine's own apt uses, by signed lists in a state folder of their own: the headers of ONNX Runtime (Debian 13; the
# library itself comes from the Python wheel or any release, see cpp/README.md) and, where the machine lacks them,
# those of nlohmann-json, libtiff, libpng, libjpeg and zlib. A folder that is complete is left alone, without network.
set -eu

ORT_SUITE=trixie # the first Debian with libonnxruntime-dev
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg
STAMP_TEXT="headers 1"

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../build/cpp-deps}
stamp=$folder/.complete

fail() {
  echo "cpp/fetch_dependencies.sh: $1; need $2; try: $3" >&2
  exit 1
}

by_hand="install libtiff-dev, libpng-dev, libjpeg-dev, zlib1g-dev, nlohmann-json3-dev, and cmake -DORT_INCLUDE_DIR=DIR"

[ "$(cat "$stamp" 2>/dev/null)" = "$STAMP_TEXT" ] && exit 0
for tool in apt-get dpkg-deb; do
  command -v $tool >/dev/null || fail "$tool was not found" "Debian's package tools" "$by_hand"
done
[ -r $KEYS ] || fail "$KEYS was not found" "Debian's keys" "$by_hand"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
architecture=$(dpkg --print-architecture)

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
apt=$(mktemp -d "$folder/.apt-XXXXXX")
trap 'rm -rf "$apt"' EXIT
trap 'exit 1' HUP INT TERM

# find_mirror OPTION..: the first mirror of this release that the machine's apt knows; it forgets those without lists.
find_mirror() {
  apt-get "$@" indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$suite" '$1 == suite { print $2; exit }'
}

mirror=$(find_mirror)
if [ -z "$mirror" ]; then
  mkdir -p "$apt/own/lists/partial"
  apt-get -q=2 -o Dir::State="$apt/own" -o Dir::Cache="$apt/own" -o APT::Sandbox::User="$(id -un)" \
    -o APT::Update::Post-Invoke::= update >/dev/null 2>&1 || true
  mirror=$(find_mirror -o Dir::State="$apt/own")
fi
[ -n "$mirror" ] || fail "apt knows no mirror of '$suite'" "a Debian release among its sources" "$by_hand"

# run_apt LIST COMMAND..: apt-get that reads and writes nothing of the machine's own apt.
run_apt() {
  list=$1
  shift
  apt-get -q=2 -o Dir::State="$apt/$list" -o Dir::State::status=/dev/null -o Dir::Cache="$apt/$list" \
    -o Dir::Etc::sourcelist="$apt/$list.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- \
    -o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke::= -o Acquire::Languages=none \
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}

# fetch SUITE PACKAGE..: the packages of a Debian release, unpacked into the folder.
fetch() {
  from=$1
  shift
  mkdir -p "$apt/$from/lists/partial" "$apt/$from/archives/partial" "$apt/$from/debs"
  echo "deb [signed-by=$KEYS arch=$architecture] $mirror $from main" >"$apt/$from.list"
  run_apt "$from" update >"$apt/log" 2>&1 && (cd "$apt/$from/debs" && run_apt "$from" download "$@") >>"$apt/log" 2>&1 ||
    fail "$* cannot be fetched from $mirror ($(grep -m1 '^[EW]:' "$apt/log"))" "a network, once" "$by_hand"
  for deb in "$apt/$from/debs"/*.deb; do
    dpkg-deb -x "$deb" "$folder"
  done
}

has_header() {
  [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ] || ls /usr/include/*-linux-gnu*/"$1" >/dev/null 2>&1
}

missing=""
while read -r header package; do
  has_header "$header" || missing="$missing $package"
done <<END
nlohmann/json.hpp nlohmann-json3-dev
tiffio.h libtiff-dev
png.h libpng-dev
jpeglib.h libjpeg62-turbo-dev
zlib.h zlib1g-dev
END

if [ -n "$missing" ]; then
  # Another distribution's libraries need that distribution's headers.
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || fail "no headers of$missing" "them" "sudo apt-get install$missing"
  # shellcheck disable=SC2086  # several words
  fetch "$suite" $missing
fi
fetch $ORT_SUITE libonnxruntime-dev

# A link name such as libtiff.so points beside itself; the library is the machine's.
for link in "$folder"/usr/lib/*/lib*.so; do
  if [ ! -L "$link" ] || [ -e "$link" ]; then
    continue
  fi
  name=$(readlink "$link")
  case $name in libonnxruntime*) rm "$link" && continue ;; esac
  soname=$(echo "$name" | sed 's/\(\.so\.[0-9]*\).*/\1/')
  library=$(ls /lib/*-linux-gnu*/"$soname" /usr/lib/*-linux-gnu*/"$soname" 2>/dev/null | head -n 1)
  case $name:$library in
    libtiffxx*:) rm "$link" ;;
    *:) fail "the machine has no $soname" "that library" "sudo apt-get install ${name%%.so*}" ;;
    *) ln -sf "$library" "$link" ;;
  esac
done
rm -rf "$folder/usr/share/doc" "$folder/usr/share/man"
echo "$STAMP_TEXT" >"$stamp"
