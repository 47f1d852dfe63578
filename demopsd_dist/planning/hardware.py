"""Table of devices with their peak rates, and the cluster to plan for. Rates are from the vendors' data sheets, dense,
of the SXM boards where there are several; `roofline.py` has the share of them that a run reaches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from demopsd_dist.util.errors import ConfigError

GB = 1e9
GIB = 2.0**30
DEVICES_PER_NODE = 8


@dataclass(frozen=True)
class Device:
    """One GPU, or one CPU core. Rates are in one direction; link and network rates are one device's share."""

    name: str
    memory_gib: float  # usable, as the driver reports it
    bfloat16_tflops: float  # rate of matrix products with operands in this format
    tf32_tflops: float
    float32_tflops: float
    memory_gb_per_s: float
    link_gb_per_s: float  # rate to another device of the node
    host_gb_per_s: float  # rate to the node's memory
    network_gb_per_s: float  # rate to another node
    shared: bool = False  # CPU cores: all cores of the node together have `memory_gib`

    def flops(self, precision: str) -> float:
        return {"bfloat16": self.bfloat16_tflops, "tf32": self.tf32_tflops, "float32": self.float32_tflops}[
            precision
        ] * 1e12


# float32 is without tensor cores: PyTorch does not round operands to TF32 unless this is switched on.
# H100, H200: NVIDIA H100 and H200 data sheets. A100 80GB: NVIDIA A100 data sheet. L40S: NVIDIA L40S data sheet.
# H20: NVIDIA H20 figures as resellers print them (the paper's board). PCIe 5 and 4 x16: 64 and 32 GB/s each way.
# Network: a DGX H100 has 400 Gb/s for each GPU, a DGX A100 200 Gb/s; for the L40S 100 Gb/s is an assumption.
DEVICES = {
    device.name: device
    for device in (
        Device("h100", 79.6, 989.0, 495.0, 67.0, 3350.0, 450.0, 64.0, 50.0),
        Device("h200", 140.4, 989.0, 495.0, 67.0, 4800.0, 450.0, 64.0, 50.0),
        Device("a100", 80.0, 312.0, 156.0, 19.5, 2039.0, 300.0, 32.0, 25.0),
        Device("l40s", 45.0, 362.0, 183.0, 91.6, 864.0, 32.0, 32.0, 12.5),
        Device("h20", 95.6, 148.0, 74.0, 44.0, 4000.0, 450.0, 64.0, 50.0),
    )
}


@dataclass(frozen=True)
class DeviceCluster:
    """Equal nodes, each with `per_node` devices."""

    device: Device
    nodes: int
    per_node: int

    @property
    def size(self) -> int:
        return self.nodes * self.per_node


def parse_cluster(text: str, measured: Mapping[str, Device] | None = None) -> DeviceCluster:
    """Parse `8xh100`, `4x8xh100` (nodes, devices a node, kind) or `2xcpu`. More than eight devices are eight a node.

    Args:
        measured: devices of a calibration, by name; `cpu` is known only from one.

    Raises:
        ConfigError: the text has another form, or names an unknown device.
    """
    devices = {**DEVICES, **(measured or {})}
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x([a-z]\w*)", text.lower())
    if not match or not int(match[2]) or (match[1] and not int(match[1])):
        raise ConfigError(f"--gpus {text}: write 8xh100, or 4x8xh100 for 4 nodes with 8 each.")
    if match[3] not in devices:
        hint = " A cpu is known only from a calibration: add --calibrate FILE.json." if match[3] == "cpu" else ""
        raise ConfigError(f"--gpus {text}: no rates are known for {match[3]}, only for {', '.join(devices)}.{hint}")
    device, count = devices[match[3]], int(match[2])
    if match[1]:
        return DeviceCluster(device, int(match[1]), count)
    if device.shared or count <= DEVICES_PER_NODE:
        return DeviceCluster(device, 1, count)
    if count % DEVICES_PER_NODE:
        raise ConfigError(
            f"--gpus {text}: {count} is not a multiple of {DEVICES_PER_NODE} devices a node. "
            f"Write NODESxPERNODEx{match[3]}."
        )
    return DeviceCluster(device, count // DEVICES_PER_NODE, DEVICES_PER_NODE)
