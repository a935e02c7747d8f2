#!/usr/bin/env bash
# getrusage(2) of Linux 6.18, asked by Python 3.11.
#
# ru_maxrss is called the peak resident memory of the calling process. It is not that of the program:
# one that was just started by another process begins with the peak that the other one had at that
# time, since the kernel carries it over when a new program replaces the old one. A program that needs
# 10 MB says 400 if what started it had 400. VmHWM in /proc/self/status begins anew, and so does the
# figure of a program that a small one starts (/usr/bin/time, a shell).
#
# Seen on 2026-11-29:
#   started by a small process:      ru_maxrss   13 MiB, VmHWM   13 MiB
#   started by a process of 400 MiB: ru_maxrss  413 MiB, VmHWM   13 MiB
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/child.py" <<'PYTHON'
import resource

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, int(status["VmHWM"].split()[0]) // 1024)
PYTHON
cat > "$folder/parent.py" <<'PYTHON'
import subprocess
import sys

def child():
    done = subprocess.run([sys.executable, sys.argv[1]], capture_output=True, text=True, check=True)
    return [int(each) for each in done.stdout.split()]

small = child()
ballast = bytearray(b"x") * (400 << 20)
large = child()
print(f"started by a small process:      ru_maxrss {small[0]:4} MiB, VmHWM {small[1]:4} MiB")
print(f"started by a process of 400 MiB: ru_maxrss {large[0]:4} MiB, VmHWM {large[1]:4} MiB")
assert small[0] < 100 and large[1] < 100 and large[0] >= 400, "the behaviour has changed"
PYTHON
python3 "$folder/parent.py" "$folder/child.py"
