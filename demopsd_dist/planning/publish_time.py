"""Publishing: the first learner packs the weights, a bucket at a time, and every receiver loads them."""

from __future__ import annotations

from demopsd_dist.planning.forward_time import gathered_s
from demopsd_dist.planning.hardware import GB, DeviceCluster
from demopsd_dist.planning.roofline import Load
from demopsd_dist.planning.workload import Split, Workload

SENT_PASSES = 3.0  # over the bytes of a bucket: read, written where the receivers find it, digested
LOADED_PASSES = 5.0  # digested, read, written into the model, packed for its kernels: read and written again
OBJECT_STORE_GB_PER_S = 5.0  # from node to node at best, through Ray's object store: assumed; launch.doctor measures it


def publish_load(job: Workload, split: Split, fleet: DeviceCluster) -> Load:
    """Packing and loading overlap from bucket to bucket, except for the first and the last; receivers load at the same
    time where each has processors of its own."""
    device = fleet.device
    size = float(job.weights_bytes)
    gathered = gathered_s(job, split.learner, fleet)
    buckets = max(1.0, size / (job.bucket_mib * 2**20))
    receivers = split.rollout + split.teacher
    if device.shared:  # cores are shared as well as memory
        at_once = max(1.0, (receivers + 1) / fleet.size)
        seconds = (SENT_PASSES + LOADED_PASSES) * size / (device.memory_gb_per_s * GB) * at_once
        return Load(seconds, sent_s=gathered, calls=1, layers=buckets, items=receivers)
    out_s = size / (device.host_gb_per_s * GB)
    sent_s = size / (OBJECT_STORE_GB_PER_S * GB) if fleet.nodes > 1 else 0.0
    return Load(out_s + out_s / buckets, sent_s=gathered + sent_s, calls=1, layers=buckets, items=receivers)
