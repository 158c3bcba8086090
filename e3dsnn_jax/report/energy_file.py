"""`energy.json`: what an average cloud costs, layer by layer."""

from pathlib import Path
from typing import Any, NamedTuple

from e3dsnn_jax.report.json_file import JsonFile

ENERGY = "energy.json"

_MICRO = 1e3
"""µJ of a mJ."""

_PARTS = {
    "compute": "additions and products",
    "updates": "neurons and BatchNorm",
    "weights": "memory of weights",
    "state": "memory of membranes",
    "spikes": "memory of spikes",
    "addressing": "memory of addresses",
}

_REPORTS = {
    "exact": "every operation counted",
    "rate": "firing rate times operations, computation alone",
    "ann": "the same layers without spikes, computation alone",
    "paper_compatible": "rule of the published script",
}


class EnergyFile(NamedTuple):
    """Energies of an average cloud, in µJ, by the names that a page shows."""

    layers: tuple[str, ...]
    parts: dict[str, list[float]]
    """What each layer spends on each kind of work."""
    totals: dict[str, float]
    """The network, by each way of counting."""
    clouds: int | None
    step: int | None
    prices: str
    notes: tuple[str, ...]


def read_energy(run: Path) -> EnergyFile | None:
    """Reads the account of a run; None if there is none yet.

    Only what is shown must be there: `layers` with a `name` and an
    `energy_mj_per_cloud` of named numbers each, and the `energy_mj_per_cloud` of the
    network, whose entries are numbers or such names with numbers. Others are skipped.

    Raises:
      ConfigError: If the file is damaged, or holds no energy of layers.
    """
    path = run / ENERGY
    if not path.exists():
        return None
    file = JsonFile(path, f"e3dsnn energy {run}")
    key = "energy_mj_per_cloud"
    layers, network = file.take("layers"), file.take(key)
    if not isinstance(layers, list) or not isinstance(network, dict):
        raise file.error(f"layers is no list, or {key} no object")
    names: list[str] = []
    spent: list[dict[str, float]] = []
    for layer in layers:
        parts = layer.get(key) if isinstance(layer, dict) else None
        if not isinstance(parts, dict) or not isinstance(layer.get("name"), str):
            raise file.error(f"a layer has no name or no {key}")
        names.append(layer["name"])
        spent.append({part: x for part, x in parts.items() if _counts(part, x)})
    found = dict.fromkeys(part for parts in spent for part in parts)
    prices = file.content.get("prices_pj")
    notes = file.content.get("notes")
    return EnergyFile(
        layers=tuple(names),
        parts={
            _PARTS.get(part, part): [_MICRO * parts.get(part, 0.0) for parts in spent]
            for part in found
        },
        totals=dict(_totals(network)),
        clouds=_whole(file.content.get("clouds")),
        step=_whole(file.content.get("step")),
        prices=str(prices.get("name", "")) if isinstance(prices, dict) else "",
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
    )


def _totals(network: dict[str, Any]) -> list[tuple[str, float]]:
    rows = []
    for name, value in network.items():
        title = _REPORTS.get(name, name)
        if isinstance(value, dict):
            parts = {part: x for part, x in value.items() if _counts(part, x)}
            rows.append((title, _MICRO * sum(parts.values())))
            rows += [
                (f"{title}: {_PARTS.get(part, part)}", _MICRO * x)
                for part, x in parts.items()
            ]
        elif _counts(name, value) and not name.endswith("_flops"):
            rows.append((title, _MICRO * value))
    return rows


def _counts(part: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and part != "total"


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
