"""Other people's firewalls: what of them keeps forwarded packets from the pods.

A verdict to drop or to reject is final, whatever other tables accept. So each base chain at the hook `forward` is looked
at: of nftables (firewalld's, an administrator's, what iptables-nft and Docker share), and of the old iptables, which
nftables does not show. A chain is in the way if it drops or rejects what none of its rules takes care of, and no rule of its
table speaks of the pods' bridge or subnet. That is told, and nothing is changed: a firewall is its administrator's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pyroute2.netlink import NLM_F_DUMP
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    nft_chain_msg,
    nft_rule_msg,
)

from kernel import syscalls
from runtime.network.config import Network, NetworkConfig
from runtime.network.sysctls import read_sysctl

if TYPE_CHECKING:
    from runtime.network.nft_table import Table

NF_INET_FORWARD: Final = 2
NF_DROP: Final = 0
NFTA_DATA_VALUE: Final = 1
FAMILIES: Final = {NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6", NFPROTO_INET: "inet"}
NO_MATCHES: Final = frozenset({"counter", "log", "immediate", "reject", "target"})

IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES = 64, 65
LEGACY_NAMES: Final = {4: "ip_tables_names", 6: "ip6_tables_names"}
LEGACY_TARGET_OFFSET: Final = {4: 88, 6: 140}
"""Of `target_offset` in `struct ipt_entry` and `struct ip6t_entry`."""


async def obstacle(table: Table, config: NetworkConfig, networks: Sequence[Network]) -> str:
    """Which chain of nftables is in the way, and what to do; empty if none is."""
    for chain in await table.get(nft_chain_msg(), NFT_MSG_GETCHAIN, NLM_F_DUMP, 0):
        family, name = chain["nfgen_family"], chain.get_attr("NFTA_CHAIN_TABLE")
        if family not in FAMILIES or name == config.table or chain.get_attr("NFTA_CHAIN_TYPE") != "filter":
            continue
        hook = chain.get_attr("NFTA_CHAIN_HOOK")
        if hook is None or hook.get_attr("NFTA_HOOK_HOOKNUM") != NF_INET_FORWARD:
            continue
        concerned = [network for network in networks if family in (NFPROTO_INET, _family(network))]
        here = chain.get_attr("NFTA_CHAIN_NAME")
        verdict = "drops"
        if chain.get_attr("NFTA_CHAIN_POLICY") != NF_DROP:
            verdict = _last_word(await table.get(_rules(name, here), NFT_MSG_GETRULE, NLM_F_DUMP, family))
        if not concerned or not verdict:
            continue
        rules = await table.get(_rules(name), NFT_MSG_GETRULE, NLM_F_DUMP, family)
        raw = (bytes(rule.data[rule.offset : rule.offset + rule.length]) for rule in rules)
        if not any(_mentions(rule, config.bridge, concerned) for rule in raw):
            return _text(FAMILIES[family], name, here, verdict, config.bridge)
    return ""


def _rules(table: str, chain: str = "") -> Any:
    """A request for the rules of a table, or of one of its chains."""
    message = nft_rule_msg()
    message["attrs"] = [["NFTA_RULE_TABLE", table], *([["NFTA_RULE_CHAIN", chain]] if chain else [])]
    return message


def _family(network: Network) -> int:
    return int(NFPROTO_IPV4 if network.version == 4 else NFPROTO_IPV6)


def _last_word(rules: Sequence[Any]) -> str:
    """What a chain does with packets that reach its end, if its last rule says it."""
    expressions = (rules[-1].get_attr("NFTA_RULE_EXPRESSIONS") or ()) if rules else ()
    named = {expression.get_attr("NFTA_EXPR_NAME"): expression.get_attr("NFTA_EXPR_DATA") for expression in expressions}
    if not named.keys() <= NO_MATCHES:
        return ""
    said = f"{named.get('immediate')} {named.get('target')}"
    if "NF_DROP" in said or "'DROP'" in said:
        return "drops"
    return "rejects" if "reject" in named or "REJECT" in said else ""


def _mentions(rule: bytes, bridge: str, networks: Sequence[Network]) -> bool:
    """Whether a rule, in the kernel's encoding, has the bridge's name or a pod subnet among its values."""
    if bridge.encode() + b"\0" in rule:
        return True
    for network in networks:
        packed = network.network_address.packed
        parts = {packed, packed[: (network.prefixlen + 7) // 8]}
        if any(struct.pack("=HH", 4 + len(part), NFTA_DATA_VALUE) + part in rule for part in parts):
            return True
    return False


def _text(family: str, table: str, chain: str, verdict: str, bridge: str) -> str:
    if table == "filter" and family != "inet":
        program = "iptables" if family == "ip" else "ip6tables"
        where = f"the chain {chain} of {program}"
    elif table == "firewalld":
        return (
            f"firewalld {verdict} what is forwarded, and no zone has {bridge}: pods do not reach other hosts; "
            f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload lets them"
        )
    else:
        return (
            f"the chain {chain} of the nftables table {family} {table} {verdict} what no rule accepts, and no rule speaks "
            f"of {bridge}: pods do not reach other hosts; nft insert rule {family} {table} {chain} iifname {bridge} accept "
            "and the same with oifname let them"
        )
    return iptables_text(where, verdict, program, bridge)


def iptables_text(where: str, verdict: str, program: str, bridge: str) -> str:
    """For iptables of either kind."""
    return (
        f"{where} {verdict} what no rule accepts, and no rule speaks of {bridge}: pods do not reach other hosts; "
        f"{program} -I FORWARD -i {bridge} -j ACCEPT and the same with -o {bridge} let them; where Docker runs, "
        f"{program} -I DOCKER-USER -i {bridge} -j ACCEPT and the same with -o {bridge}"
    )


def legacy_obstacle(config: NetworkConfig, networks: Sequence[Network]) -> str:
    """The same for the old iptables. Costs next to nothing where it is not used."""
    for network in networks:
        program = "iptables" if network.version == 4 else "ip6tables"
        try:
            with open(f"/proc/thread-self/net/{LEGACY_NAMES[network.version]}", encoding="ascii") as file:
                if "filter" not in file.read().split():
                    continue
            policy, entries = _legacy_filter(network.version)
        except OSError:  # this kernel has none, or does not show it
            continue
        told = config.bridge.encode() + b"\0" in entries or network.network_address.packed in entries
        if policy == NF_DROP and not told:
            return iptables_text(f"the chain FORWARD of {program}-legacy", "drops", f"{program}-legacy", config.bridge)
    return ""


def _legacy_filter(version: int) -> tuple[int, bytes]:
    """The policy of FORWARD, and all entries of the table."""
    family, level = (socket.AF_INET, socket.SOL_IP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as control:
        info = bytearray(struct.pack("=32s52x", b"filter"))
        syscalls.getsockopt(control.fileno(), level, IPT_SO_GET_INFO, info)
        _, *offsets, _, size = struct.unpack_from("=I5I5III", info, 32)
        block = bytearray(struct.pack("=32sI4x", b"filter", size)) + bytearray(size)
        syscalls.getsockopt(control.fileno(), level, IPT_SO_GET_ENTRIES, block)
    entries = bytes(block[40:])
    underflow = offsets[5 + NF_INET_FORWARD]
    (target,) = struct.unpack_from("=H", entries, underflow + LEGACY_TARGET_OFFSET[version])
    (verdict,) = struct.unpack_from("=i", entries, underflow + target + 32)
    return -verdict - 1, entries


def uplink_obstacle(uplink: str, networks: Sequence[Network]) -> str:
    """Whether the uplink's own sysctl keeps answers from being forwarded to pods."""
    for network in networks:
        key = f"ipv{network.version}/conf/{uplink}/forwarding"
        if uplink and read_sysctl(key) == "0":
            name = f"net.{key.replace('/', '.')}"
            return f"{name} is 0: answers from other hosts do not reach pods; sysctl -w {name}=1 lets them"
    return ""
