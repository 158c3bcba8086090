"""Sections on how much layers fire and what that costs."""

import numpy as np

from e3dsnn_jax.report.contents import Contents
from e3dsnn_jax.report.energy_file import EnergyFile
from e3dsnn_jax.report.page import Paragraph, Section, Table
from e3dsnn_jax.report.plots import BLUE, ORANGE, PALETTE, bars, layer_labels


def firing_section(contents: Contents) -> Section:
    """How often neurons of each layer spike."""
    title = "Firing"
    if contents.scores is None:
        missing = f"No evaluation yet: `e3dsnn evaluate {contents.run}` counts spikes."
        return Section("firing", title, (Paragraph(missing),))
    firing = contents.scores.firing
    if not firing.layers:
        return Section("firing", title, (Paragraph("The network has no spikes."),))
    labels = layer_labels(firing.layers)
    percent = [100 * float(rate) for rate in firing.rate]
    rates = bars(
        "firing_rate",
        "Firing rate of each layer, input on top",
        labels,
        [("rate", percent, BLUE)],
        x_title="neurons that fire (%)",
        hover="%{y}: %{x:.2f} %<extra></extra>",
        texts=[f"{value:.1f}" for value in percent],
    )
    spikes = bars(
        "mean_spikes",
        "Mean spike of a neuron",
        labels,
        [("spikes", firing.mean_spikes.tolist(), ORANGE)],
        x_title="mean integer spike",
        hover="%{y}: %{x:.3f}<extra></extra>",
        texts=[f"{value:.2f}" for value in firing.mean_spikes],
    )
    silent = int(np.nansum(firing.silent_channels))
    said = [
        f"{label} ({int(count)})"
        for label, count in zip(labels, firing.silent_channels, strict=True)
        if count > 0
    ]
    text = (
        f"{silent} channels never fire: {', '.join(said)}."
        if said
        else "Every channel fires at least once."
    )
    text = f"A neuron is a channel of a voxel in a time step. {text}"
    return Section("firing", title, (rates, spikes, Paragraph(text)))


def energy_section(contents: Contents) -> Section:
    """What an average cloud costs, layer by layer."""
    title, energy = "Energy", contents.energy
    if energy is None:
        missing = f"No account yet: `e3dsnn energy {contents.run}` makes it."
        return Section("energy", title, (Paragraph(missing),))
    layers = bars(
        "energy_layers",
        "Energy of each layer, input on top",
        energy.layers,
        [
            (part, values, PALETTE[place % len(PALETTE)])
            for place, (part, values) in enumerate(energy.parts.items())
        ],
        x_title="µJ for an average cloud",
        hover="%{y}: %{x:.4g} µJ<extra>%{fullData.name}</extra>",
        wide=True,
    )
    totals = Table(
        "The whole network",
        ("way of counting", "µJ for an average cloud"),
        tuple((name, f"{value:.4g}") for name, value in energy.totals.items()),
    )
    return Section("energy", title, (Paragraph(_told(energy)), layers, totals))


def _told(energy: EnergyFile) -> str:
    clouds = "" if energy.clouds is None else f"Mean of {energy.clouds} clouds. "
    prices = f"Prices: {energy.prices}. " if energy.prices else ""
    return clouds + prices + " ".join(energy.notes)
