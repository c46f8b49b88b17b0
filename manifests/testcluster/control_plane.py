"""A control plane for the test cluster: etcd and Kubernetes' own programs in the namespace of the fabric.

    DIRECTORY/control-plane/
        pki/                            a certificate authority, and what it has signed
        NAME.kubeconfig                 of admin, controller-manager, scheduler, proxy, and of each node
        etcd/                           data
        NAME.log NAME.pid               of each program
    DIRECTORY/admin.kubeconfig          for kubectl: `nsenter --net=/run/netns/tc-fabric kubectl --kubeconfig …`

What it signs is for a cluster that nobody reaches from outside, and lives for a year. There is no DNS in it: Services are
reached by address, or with a CoreDNS of one's own. Needs openssl.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ADDRESS = "192.168.250.254"
PORT = 6443
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
PODS = "10.244.0.0/16"

START_SECONDS = 300.0
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
DAEMONS = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
"""In the order in which they are stopped."""


def missing(programs: Path) -> list[str]:
    """What the directory with the programs lacks."""
    return [name for name in PROGRAMS if not (programs / name).exists()]


class ControlPlane:
    """Its files; who starts the programs is the caller's matter."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self.pki = directory / "pki"
        self._programs = programs

    def prepare(self) -> None:
        """Make keys, certificates and kubeconfigs of all but the nodes."""
        self.pki.mkdir(parents=True)
        self._openssl(
            "req", "-x509", "-nodes", "-days", "365", "-subj", "/CN=testcluster", *self._new_key("ca"), out="ca.crt"
        )
        names = f"IP:{ADDRESS},IP:{FIRST_SERVICE},IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default.svc"
        self._sign("apiserver", "/CN=kube-apiserver", names)
        self._sign("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        self._openssl("genrsa", "2048", out="service-accounts.key")
        self._openssl("rsa", "-in", str(self.pki / "service-accounts.key"), "-pubout", out="service-accounts.pub")
        self.kubeconfig("admin", "/O=system:masters/CN=admin")
        self.kubeconfig("controller-manager", "/CN=system:kube-controller-manager")
        self.kubeconfig("scheduler", "/CN=system:kube-scheduler")
        self.kubeconfig("proxy", "/CN=system:kube-proxy")

    def kubeconfig(self, name: str, subject: str) -> Path:
        """A kubeconfig for whom the subject says."""
        self._sign(name, subject)
        path = self.directory / f"{name}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "testcluster",
                    "cluster": {"server": f"https://{ADDRESS}:{PORT}", "certificate-authority": str(self.pki / "ca.crt")},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate": str(self.pki / f"{name}.crt"),
                        "client-key": str(self.pki / f"{name}.key"),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": "testcluster", "user": name}}],
            "current-context": name,
        }
        path.write_text(json.dumps(document))  # which is YAML
        return path

    def node_kubeconfig(self, node: str) -> Path:
        """The one of a node's kubelet."""
        return self.kubeconfig(node, f"/O=system:nodes/CN=system:node:{node}")

    def commands(self) -> dict[str, list[str]]:
        """The programs of the control plane, in the order of their start."""
        pki = self.pki
        manager, scheduler = (str(self.directory / f"{name}.kubeconfig") for name in ("controller-manager", "scheduler"))
        options = {
            "etcd": {
                "data-dir": self.directory / "etcd",
                "listen-client-urls": "http://127.0.0.1:2379",
                "advertise-client-urls": "http://127.0.0.1:2379",
                "listen-peer-urls": "http://127.0.0.1:2380",
                "initial-advertise-peer-urls": "http://127.0.0.1:2380",
                "unsafe-no-fsync": "true",
            },
            "kube-apiserver": {
                "etcd-servers": "http://127.0.0.1:2379",
                "bind-address": ADDRESS,
                "advertise-address": ADDRESS,
                "secure-port": PORT,
                "service-cluster-ip-range": SERVICES,
                "client-ca-file": pki / "ca.crt",
                "tls-cert-file": pki / "apiserver.crt",
                "tls-private-key-file": pki / "apiserver.key",
                "kubelet-client-certificate": pki / "kubelet-client.crt",
                "kubelet-client-key": pki / "kubelet-client.key",
                "service-account-issuer": "https://kubernetes.default.svc",
                "service-account-key-file": pki / "service-accounts.pub",
                "service-account-signing-key-file": pki / "service-accounts.key",
                "authorization-mode": "Node,RBAC",
                "kubelet-preferred-address-types": "InternalIP",  # no name of a node can be looked up
                "allow-privileged": "true",
            },
            "kube-controller-manager": {
                "kubeconfig": manager,
                "bind-address": "127.0.0.1",
                "leader-elect": "false",
                "use-service-account-credentials": "true",
                "root-ca-file": pki / "ca.crt",
                "service-account-private-key-file": pki / "service-accounts.key",
            },
            "kube-scheduler": {"kubeconfig": scheduler, "bind-address": "127.0.0.1", "leader-elect": "false"},
        }
        return {name: self._command(name, **given) for name, given in options.items()}

    def proxy(self, node: str, directory: Path) -> list[str]:
        """kube-proxy of one node, whose directory gets the kubeconfig. Connection tracking's limits are the host's, so it
        leaves them alone."""
        kubeconfig = directory / "proxy.kubeconfig"
        kubeconfig.write_text((self.directory / "proxy.kubeconfig").read_text())
        return self._command(
            "kube-proxy",
            **{
                "kubeconfig": kubeconfig,
                "hostname-override": node,
                "proxy-mode": "nftables",
                "cluster-cidr": PODS,
                "conntrack-max-per-core": 0,
                "conntrack-tcp-timeout-established": "0s",
                "conntrack-tcp-timeout-close-wait": "0s",
            },
        )

    def _command(self, name: str, **options: object) -> list[str]:
        return [str(self._programs / name), *(f"--{option}={value}" for option, value in options.items())]

    def wait(self, inside: list[str]) -> None:
        """Until the API server is ready; `inside` runs a command in the fabric's namespace."""
        client = (
            "import ssl, sys, urllib.request; context = ssl.create_default_context(cafile=sys.argv[1] + '/ca.crt'); "
            "context.load_cert_chain(sys.argv[1] + '/admin.crt', sys.argv[1] + '/admin.key'); "
            f"print(urllib.request.urlopen('https://{ADDRESS}:{PORT}/readyz', context=context, timeout=10).read())"
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            asked = [*inside, sys.executable, "-c", client, str(self.pki)]
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
                return
            if time.monotonic() > deadline:
                sys.exit(f"the API server does not become ready, see {self.directory}/kube-apiserver.log")
            time.sleep(0.5)

    def _new_key(self, name: str) -> list[str]:
        return ["-newkey", "rsa:2048", "-keyout", str(self.pki / f"{name}.key")]

    def _sign(self, name: str, subject: str, names: str = "") -> None:
        """A key, and a certificate for it that is good for servers and clients."""
        extensions = self.pki / f"{name}.extensions"
        usage = "extendedKeyUsage=serverAuth,clientAuth\n"
        extensions.write_text(usage + (f"subjectAltName={names}\n" if names else ""))
        self._openssl("req", "-nodes", "-subj", subject, *self._new_key(name), out=f"{name}.request")
        authority = ["-CA", str(self.pki / "ca.crt"), "-CAkey", str(self.pki / "ca.key"), "-CAcreateserial"]
        request = ["-in", str(self.pki / f"{name}.request"), "-extfile", str(extensions)]
        self._openssl("x509", "-req", "-days", "365", *request, *authority, out=f"{name}.crt")

    def _openssl(self, *arguments: str, out: str) -> None:
        command, *rest = arguments
        target = ["-out", str(self.pki / out)]
        # genrsa takes its number of bits last
        ordered = [command, *target, *rest]
        result = subprocess.run(["openssl", *ordered], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"openssl {command}: {result.stderr.strip()}")
