#!/bin/sh
# Runs in the guest, as root, in the project's directory: what needs systemd, AppArmor and every controller of cgroup v2.
export CRISP_IN_GUEST=1 CRISP_PATIENCE="${CRISP_PATIENCE:-10}"
python=${PYTHON:-.venv/bin/python}
status=0
"$python" -m pytest -p no:cacheprovider tests/guest || status=1
"$python" -m pytest -p no:cacheprovider tests/api/test_update.py tests/api/test_resources.py tests/api/test_inheritance.py || status=1
"$python" -m pytest -p no:cacheprovider tests/api tests/kernel/test_shim.py -k "apparmor or out_of_memory or oom" || status=1
if critest=$(command -v "${CRITEST:-critest}"); then
    "$python" crisp.py serve --state /run/crisp-critest --root /var/lib/crisp-critest &
    daemon=$!
    until [ -S /run/crisp-critest/crisp.sock ]; do sleep 1; done
    nri=
    if "$critest" --help 2>&1 | grep -q nri-socket; then nri=--nri-socket=/var/run/nri/nri.sock; fi
    "$critest" --runtime-endpoint unix:///run/crisp-critest/crisp.sock $nri --ginkgo.no-color || status=1
    kill "$daemon"
fi
exit $status
