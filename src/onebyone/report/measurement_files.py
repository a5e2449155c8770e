"""A measurement as JSON-ready values and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from math import prod
from typing import Any

from onebyone.measurement.latency import TRAINING, Latency
from onebyone.measurement.layer_latency import LayerLatencies
from onebyone.measurement.measuring import LayerMeasurement, Measurement
from onebyone.measurement.memory import Memory, Peak

SCHEMA = "onebyone.measure/1"
ALIVE = 20  # tensors of a peak that are written out
# The columns of the benchmark tables of timm (PyTorch Image Models), in its units.
TIMM = (
    "model", "infer_img_size", "infer_batch_size", "infer_samples_per_sec", "infer_step_time",
    "infer_gmacs", "infer_macts", "train_img_size", "train_batch_size", "train_samples_per_sec",
    "train_step_time", "param_count",
)  # fmt: skip
COUNTED = (
    "macs", "params", "weight_bytes", "activation_bytes", "bytes_read", "bytes_written", "calls",
)  # fmt: skip
FIELDS: tuple[str, ...] = (
    *TIMM, "layer", "kind", "input_shape", "output_shape", *COUNTED, "network_ms", "network_low_ms",
    "network_high_ms", "alone_ms", "training_ms", "training_alone_ms", "bound", "fraction_of_limit",
    "inference_peak_bytes", "training_peak_bytes", "threads", "dtype", "device", "runtime",
)  # fmt: skip


def measurement_json(
    name: str, measurement: Measurement, *, operations: bool = False
) -> dict[str, Any]:
    """Everything that was counted and measured; null for what was not.

    Counts are for the inputs in `input_shapes`, memory and times for `batch` images; bytes, and
    milliseconds. operations: every operator that ran, one by one, as well.
    """
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "model": name,
        "input_shapes": [list(s) for s in measurement.input_shapes],
        "partial": measurement.failure,
        "macs": measurement.macs,
        "params": measurement.params,
        "weight_bytes": measurement.weight_bytes,
        "activation_bytes": measurement.activation_bytes,
        "batch": measurement.batch,
        "memory": _memory(measurement.memory),
        "latency": [asdict(t) for t in measurement.latency],
        "machine": None if measurement.machine is None else asdict(measurement.machine),
        "placement": None if measurement.placement is None else asdict(measurement.placement),
        "layer_sums": _sums(measurement.layer_latency),
        "training_layer_sums": _sums(measurement.training_latency),
        "layers": [asdict(layer) for layer in measurement.layers.values()],
        "not_counted": measurement.uncounted,
        "unknown_operators": list(measurement.unknown),
        "never_ran": list(measurement.unused),
        "notes": list(measurement.notes),
    }
    if operations:
        values["operations"] = [
            {"layer": o.layer} | asdict(o.facts) for o in measurement.count.operations
        ]
    return values


def _memory(memory: Memory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    return {
        "weight_bytes": memory.weight_bytes,
        "inference": _peak(memory.inference),
        "training": None if memory.training is None else _peak(memory.training),
    }


def _peak(peak: Peak) -> dict[str, Any]:
    return {
        "bytes": peak.bytes,
        "layer": peak.layer,
        "operator": peak.operator,
        "alive": [asdict(a) for a in peak.alive[:ALIVE]],
        "alive_in_all": len(peak.alive),
    }


def _sums(inside: LayerLatencies | None) -> dict[str, Any] | None:
    if inside is None:
        return None
    return {
        "whole_ms": inside.whole.median_ms, "layers_ms": inside.layers_ms, "rest_ms": inside.rest_ms,
        "elsewhere_ms": inside.elsewhere_ms, "hooks_ms": inside.hooks_ms,
        "interrupted_ms": inside.interrupted_ms,
    }  # fmt: skip


def measurement_csv(name: str, measurement: Measurement) -> str:
    """A line for the whole network, without a layer, and one for each layer.

    The columns of timm's benchmark tables are there in timm's units: GMACs, millions of activations
    (outputs of operators with MACs), millions of parameters, milliseconds a step.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerow(_whole_line(name, measurement))
    writer.writerows(_layer_line(name, layer) for layer in measurement.layers.values())
    return file.getvalue()


def _whole_line(name: str, measurement: Measurement) -> dict[str, Any]:
    operations = measurement.count.operations
    activations = sum(prod(o.writes[0].shape) for o in operations if o.macs is not None)
    shape = measurement.input_shapes[0] if measurement.input_shapes else ()
    line: dict[str, Any] = {
        "model": name, "infer_gmacs": round(measurement.macs / 1e9, 4),
        "infer_macts": round(activations / 1e6, 4), "param_count": round(measurement.params / 1e6, 4),
        "input_shape": _text(shape), "macs": measurement.macs, "params": measurement.params,
        "weight_bytes": measurement.weight_bytes, "activation_bytes": measurement.activation_bytes,
        "bytes_read": sum(o.bytes_read for o in operations),
        "bytes_written": sum(o.bytes_written for o in operations),
    }  # fmt: skip
    for latency in measurement.latency:
        if latency.runtime == measurement.latency[0].runtime:
            line |= _timm(latency, shape)
    if measurement.latency:
        first = measurement.latency[0]
        line |= {
            "network_ms": first.median_ms, "network_low_ms": first.low_ms,
            "network_high_ms": first.high_ms, "threads": first.threads, "dtype": first.dtype,
            "device": first.device, "runtime": first.runtime,
        }  # fmt: skip
    if measurement.placement is not None:
        line |= {
            "bound": measurement.placement.bound,
            "fraction_of_limit": measurement.placement.fraction,
        }
    if measurement.memory is not None:
        line["inference_peak_bytes"] = measurement.memory.inference.bytes
        if measurement.memory.training is not None:
            line["training_peak_bytes"] = measurement.memory.training.bytes
    return line


def _timm(latency: Latency, shape: tuple[int, ...]) -> dict[str, Any]:
    kind = "train" if latency.mode == TRAINING else "infer"
    return {
        f"{kind}_img_size": shape[-1] if len(shape) > 2 else "",
        f"{kind}_batch_size": latency.batch,
        f"{kind}_samples_per_sec": round(1000 * latency.batch / latency.median_ms, 2),
        f"{kind}_step_time": round(latency.median_ms, 4),
    }


def _layer_line(name: str, layer: LayerMeasurement) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": name, "layer": layer.name, "kind": layer.kind,
        "input_shape": _text(layer.input_shape), "output_shape": _text(layer.output_shape),
        **{field: getattr(layer, field) for field in COUNTED},
    }  # fmt: skip
    if layer.latency is not None:
        line |= {
            "network_ms": layer.latency.network_ms, "network_low_ms": layer.latency.network_low_ms,
            "network_high_ms": layer.latency.network_high_ms,
        }  # fmt: skip
        line["alone_ms"] = layer.latency.alone_ms
    if layer.training is not None:
        line |= {
            "training_ms": layer.training.network_ms, "training_alone_ms": layer.training.alone_ms
        }  # fmt: skip
    if layer.placement is not None:
        line |= {"bound": layer.placement.bound, "fraction_of_limit": layer.placement.fraction}
    return {field: value for field, value in line.items() if value is not None}


def _text(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))
