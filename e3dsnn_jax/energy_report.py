"""What an account is told as: the published rule, JSON, and a table.

The published energy script counts the three convolutions of the stem alone, the first
as if it had as many input channels as outputs, as `2 * pairs * E * E - voxels` "FLOPs"
of 4.6 pJ each, and no spike at all. It is here so that published rows can be compared
with, and the difference explained.

The fields of `energy.json`, each block in one unit:

* `source`, `step`, `data`, `split`, `hold_out`, `voxel_size`: what was counted.
* `network`: `model`, published `variant` (null if it is none of those), `architecture`,
  neurons: `time_steps` (T), `levels` (D), `decay` (what a membrane keeps from one time
  step to the next), `relu` (in place of spikes); null where the network does not tell.
* `clouds`: how many; `notes`: what must be known of this network; `assumptions`: the
  rules of the exact account; `prices_pj`: in the form of `--prices`; `parameters`.
* `energy_mj_per_cloud`: `exact`, by part (`compute`: additions and products, `updates`:
  neurons and BatchNorm, `weights`, `state`: sums, membranes and real values, `spikes`,
  `addressing`) and their `total`; `rate`: firing rate times operations; `ann`: the
  products of the same layers without spikes; `paper_compatible`: by the published
  script's rule, absent for a network without a stem.
* `operations_per_cloud` (means) and `totals_over_clouds` (whole numbers, but for the
  estimate): `macs` of layers with real inputs, `synaptic_operations`, their estimate
  `rate_operations`, `equivalent_macs` of the same layers without spikes, `dense_macs`
  of dense layers on the grids; of the means also `paper_compatible_flops`.
* `membrane_bytes_per_cloud`.
* `layers`: of each its name, input (`spikes` or `real values`), kernel offsets,
  channels, parameters, `same_input_as` (an earlier layer that receives the same input,
  or null), `array_bytes_per_cloud` and the `memories` in which these arrays lie,
  `firing_rate` and `firing_rates` (by time step and binary step; null for real values),
  `energy_mj_per_cloud` by part, and `totals_over_clouds`: as above, and `voxels_in`,
  `voxels_out`, `pairs`, `spikes`, `membrane_bytes`, `updates`, `traffic_bytes` of each
  array, `lookups`.
"""

import textwrap
from typing import Any

from e3dsnn_jax.energy import (
    ASSUMPTIONS,
    Account,
    ann_energy,
    exact_energy,
    rate_energy,
)
from e3dsnn_jax.layer_account import LayerAccount
from e3dsnn_jax.prices import describe_prices

_PUBLISHED_PJ = 4.6
_MILLI = 1e-9
"""mJ of a pJ."""
_ITEM: dict[str, Any] = {"initial_indent": "- ", "subsequent_indent": "  "}


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
    """The account as JSON, with the fields above.

    Args:
      account: The account.
      **details: Further fields, which come first.
    """
    exact, layers = exact_energy(account), account.layers
    energies: dict[str, Any] = {
        "exact": {part: _MILLI * energy for part, energy in exact.items()},
        "rate": _MILLI * rate_energy(account),
        "ann": _MILLI * ann_energy(account),
    }
    counted = [_operations(layer) for layer in layers]
    totals = {name: sum(counts[name] for counts in counted) for name in counted[0]}
    means = {name: count / account.clouds for name, count in totals.items()}
    if any(layer.shape.name.startswith("stem/") for layer in layers):
        flops = published_flops(account)
        energies["paper_compatible"] = _MILLI * published_energy(flops)
        means["paper_compatible_flops"] = flops
    membranes = sum(layer.membrane_bytes for layer in layers)
    return {
        **details,
        "network": account.network,
        "clouds": account.clouds,
        "notes": list(account.notes),
        "assumptions": list(ASSUMPTIONS),
        "prices_pj": describe_prices(account.prices),
        "parameters": sum(layer.shape.parameters for layer in layers),
        "energy_mj_per_cloud": energies,
        "operations_per_cloud": means,
        "totals_over_clouds": totals,
        "membrane_bytes_per_cloud": membranes / account.clouds,
        "layers": [_describe_layer(layer, account) for layer in layers],
    }


def _operations(layer: LayerAccount) -> dict[str, float]:
    return {
        "macs": layer.macs,
        "synaptic_operations": layer.synaptic_operations,
        "rate_operations": layer.rate_estimate,
        "equivalent_macs": layer.equivalent_macs,
        "dense_macs": layer.dense_macs,
    }


def _describe_layer(layer: LayerAccount, account: Account) -> dict[str, Any]:
    shape, totals = layer.shape, layer.totals
    spiking = shape.takes_spikes
    energy = {
        part: _MILLI * energy / account.clouds
        for part, energy in layer.energy(account.prices).items()
    }
    return {
        "name": shape.name,
        "input": "spikes" if spiking else "real values",
        "offsets": shape.offsets,
        "channels": [shape.c_in, shape.c_out],
        "parameters": shape.parameters,
        "same_input_as": shape.same_input_as,
        "array_bytes_per_cloud": layer.sizes,
        "memories": layer.memories(account.prices),
        "firing_rate": layer.firing_rate if spiking else None,
        "firing_rates": layer.firing_rates if spiking else None,
        "energy_mj_per_cloud": energy,
        "totals_over_clouds": {
            **_operations(layer),
            "voxels_in": totals.voxels_in,
            "voxels_out": totals.voxels_out,
            "pairs": totals.pairs,
            "spikes": totals.spikes,
            "membrane_bytes": layer.membrane_bytes,
            "updates": layer.updates,
            "traffic_bytes": layer.traffic,
            "lookups": layer.lookups,
        },
    }


def format_account(account: Account) -> str:
    """The account as a table of layers, then the reports, of an average cloud.

    Its last lines are what the numbers assume, and where the prices come from.
    """
    clouds = account.clouds
    width = max(len(layer.shape.name) for layer in account.layers)
    lines = [] if account.network is None else [_format_network(account.network), ""]
    lines += [
        f"{'layer':<{width}}  input      pairs      MACs   syn. ops   dense MACs   "
        "rate   compute nJ    all nJ   weights in"
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
            f"{1e-3 * sum(energy.values()) / clouds:>9.4g}   "
            f"{layer.memories(account.prices)['weights']}"
        )
    lines += ["", *_format_reports(account)]
    lines += [f"Note: {note}" for note in account.notes]
    lines += ["", "Assumptions of the exact account:"]
    lines += [textwrap.fill(text, 88, **_ITEM) for text in ASSUMPTIONS]
    source = f"Prices: {account.prices.name}. {account.prices.source}"
    lines += textwrap.wrap(source, 88)
    return "\n".join(lines)


def _format_network(network: dict[str, Any]) -> str:
    words = [network["model"]]
    size = network["architecture"]
    if network["variant"] is not None:
        words.append(f"variant {network['variant']}")
    elif size is not None:
        stages = "-".join(map(str, size["stage_channels"]))
        words.append(f"stem of {size['embed_channels']} channels, stages {stages}")
    if network["relu"]:
        words.append("ReLU instead of spikes")
    elif network["levels"] is not None:
        words.append(f"T x D = {network['time_steps']} x {network['levels']}")
        if network["time_steps"] > 1:
            words.append(f"leak {network['decay']:g}")
    return ", ".join(words)


def _format_reports(account: Account) -> list[str]:
    report = describe_account(account)
    energies, means = report["energy_mj_per_cloud"], report["operations_per_cloud"]
    exact = energies["exact"]
    memory = sum(exact[part] for part in ("weights", "state", "spikes", "addressing"))
    rows = [
        ("exact: additions and products", exact["compute"]),
        ("exact: neurons and BatchNorm", exact["updates"]),
        ("exact: memory, without any reuse", memory),
        ("firing rate x operations", energies["rate"]),
        ("the same layers without spikes", energies["ann"]),
    ]
    if "paper_compatible" in energies:
        rows.append(("rule of the published script", energies["paper_compatible"]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {energy:>10.4g} mJ" for name, energy in rows]
    names = {
        "synaptic operations": "synaptic_operations",
        "MACs": "macs",
        "MACs of the same layers without spikes": "equivalent_macs",
        "MACs of dense layers": "dense_macs",
    }
    lines += [f"{name}: {means[key]:.4g}" for name, key in names.items()]
    lines += [
        f"parameters: {report['parameters']}",
        f"membranes: {report['membrane_bytes_per_cloud'] / 1e3:.4g} kB",
        f"mean of {account.clouds} clouds; prices: {account.prices.name}",
    ]
    return lines
