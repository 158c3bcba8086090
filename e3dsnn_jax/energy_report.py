"""What an account is told as: the published rule, JSON, and a table.

The published energy script counts the three convolutions of the stem alone, the first
as if it had as many input channels as outputs, as `2 * pairs * E * E - voxels` "FLOPs"
of 4.6 pJ each, and no spike at all. It is here so that published rows can be compared
with, and the difference explained.
"""

from typing import Any

from e3dsnn_jax.energy import (
    Account,
    LayerAccount,
    ann_energy,
    exact_energy,
    rate_energy,
)

_PUBLISHED_PJ = 4.6
_MILLI = 1e-9
"""mJ of a pJ."""


def published_flops(account: Account) -> float:
    """The "FLOPs" of an average cloud by the rule of the published script.

    Raises:
      ValueError: If the network has no stem to count.
    """
    stem = [layer for layer in account.layers if layer.shape.name.startswith("stem/")]
    if not stem:
        raise ValueError(
            "the published script counts the stem alone, and no layer is named stem/..."
        )
    flops = sum(
        published_layer_flops(
            layer.totals.pairs, layer.totals.voxels_in, layer.shape.c_out
        )
        for layer in stem
    )
    return flops / account.clouds


def published_layer_flops(pairs: int, voxels: int, channels: int) -> int:
    """The "FLOPs" that the published script counts for a convolution of the stem.

    Args:
      pairs: Pairs of its kernel map.
      voxels: Its voxels (rows, if some of them are duplicates).
      channels: Its output channels, taken for its input channels too.
    """
    return 2 * pairs * channels * channels - voxels


def published_energy(flops: float) -> float:
    """What the published script makes of them, in pJ: 4.6 each."""
    return _PUBLISHED_PJ * flops


def describe_account(account: Account, **details: Any) -> dict[str, Any]:
    """The account as JSON: whole numbers over all clouds, energies of one in mJ."""
    exact = exact_energy(account)
    layers = account.layers
    reports: dict[str, Any] = {
        "exact": {part: _MILLI * energy for part, energy in exact.items()},
        "rate": _MILLI * rate_energy(account),
        "ann": _MILLI * ann_energy(account),
    }
    if any(layer.shape.name.startswith("stem/") for layer in layers):
        flops = published_flops(account)
        reports["paper_compatible"] = _MILLI * published_energy(flops)
        reports["paper_compatible_flops"] = flops
    return {
        **details,
        "clouds": account.clouds,
        "notes": list(account.notes),
        "prices_pj": account.prices._asdict(),
        "energy_mj_per_cloud": reports,
        "macs": sum(layer.macs for layer in layers),
        "synaptic_operations": sum(layer.synaptic_operations for layer in layers),
        "rate_operations": sum(layer.rate_estimate for layer in layers),
        "equivalent_macs": sum(layer.equivalent_macs for layer in layers),
        "dense_macs": sum(layer.dense_macs for layer in layers),
        "parameters": sum(layer.shape.parameters for layer in layers),
        "state_bytes": sum(layer.state_bytes for layer in layers),
        "layers": [_describe_layer(layer, account) for layer in layers],
    }


def _describe_layer(layer: LayerAccount, account: Account) -> dict[str, Any]:
    shape, totals = layer.shape, layer.totals
    energy = {
        part: _MILLI * energy / account.clouds
        for part, energy in layer.energy(account.prices).items()
    }
    return {
        "name": shape.name,
        "input": "spikes" if shape.takes_spikes else "real values",
        "offsets": shape.offsets,
        "channels": [shape.c_in, shape.c_out],
        "parameters": shape.parameters,
        "voxels": [totals.voxels_in, totals.voxels_out],
        "pairs": totals.pairs,
        "macs": layer.macs,
        "spikes": totals.spikes,
        "synaptic_operations": layer.synaptic_operations,
        "rate_operations": layer.rate_estimate,
        "equivalent_macs": layer.equivalent_macs,
        "dense_macs": layer.dense_macs,
        "firing_rate": layer.firing_rate if shape.takes_spikes else None,
        "firing_rates": layer.firing_rates if shape.takes_spikes else None,
        "state_bytes": layer.state_bytes,
        "updates": layer.updates,
        "traffic": layer.traffic,
        "energy_mj_per_cloud": energy,
    }


def format_account(account: Account) -> str:
    """The account as a table of layers, then the reports, of an average cloud."""
    clouds = account.clouds
    width = max(len(layer.shape.name) for layer in account.layers)
    lines = [
        f"{'layer':<{width}}  input      pairs      MACs   syn. ops   dense MACs   "
        "rate   compute nJ    all nJ"
    ]
    for layer in account.layers:
        energy, shape = layer.energy(account.prices), layer.shape
        rate = f"{layer.firing_rate:6.1%}" if shape.takes_spikes else "      "
        kind = "spikes" if shape.takes_spikes else "real"
        lines.append(
            f"{shape.name:<{width}}  {kind:<6} {layer.totals.pairs / clouds:>9.4g} "
            f"{layer.macs / clouds:>9.4g}  {layer.synaptic_operations / clouds:>9.4g}  "
            f"{layer.dense_macs / clouds:>11.4g} {rate}  "
            f"{1e-3 * energy['compute'] / clouds:>11.4g} "
            f"{1e-3 * sum(energy.values()) / clouds:>9.4g}"
        )
    lines += ["", *_format_reports(account)]
    lines += [f"Note: {note}" for note in account.notes]
    return "\n".join(lines)


def _format_reports(account: Account) -> list[str]:
    report = describe_account(account)
    clouds, exact = account.clouds, report["energy_mj_per_cloud"]["exact"]
    reports = report["energy_mj_per_cloud"]
    memory = sum(exact[part] for part in ("weights", "state", "spikes", "addressing"))
    rows = [
        ("exact: additions and products", exact["compute"]),
        ("exact: neurons and BatchNorm", exact["updates"]),
        ("exact: memory, without any reuse", memory),
        ("firing rate x operations", reports["rate"]),
        ("the same layers without spikes", reports["ann"]),
    ]
    if "paper_compatible" in reports:
        rows.append(("rule of the published script", reports["paper_compatible"]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {energy:>10.4g} mJ" for name, energy in rows]
    per_cloud = {
        "synaptic operations": report["synaptic_operations"],
        "MACs": report["macs"],
        "MACs of the same layers without spikes": report["equivalent_macs"],
        "MACs of dense layers": report["dense_macs"],
    }
    lines += [f"{name}: {count / clouds:.4g}" for name, count in per_cloud.items()]
    lines += [
        f"parameters: {report['parameters']}",
        f"membranes: {report['state_bytes'] / clouds / 1e3:.4g} kB",
        f"mean of {clouds} clouds; prices: {account.prices.name}",
    ]
    return lines
