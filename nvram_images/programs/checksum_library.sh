#!/bin/sh
# One checksum of all Python sources below $1, of their names and contents.
# A program of the userland image; find, sort and the others are those of the PATH.
set -e
cd "$1"
nr_files=$(find . -name '*.py' | wc -l)
sum=$(find . -name '*.py' -exec sha256sum {} + | sort | sha256sum)
echo "${sum%% *}  $nr_files files read"
