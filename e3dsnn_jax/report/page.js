"use strict";

const SHARED = {
  autosize: true,
  font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: "#20262e" },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  hoverlabel: { bgcolor: "#fff", bordercolor: "#c4c9d0", font: { color: "#20262e" }, align: "left" },
  legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
  dragmode: false,
};
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
const PRINTED_WIDTH = 680;

/** Joins a slider or list to its figure: every change restyles the traces it names. */
function join(figure, plot, choice) {
  const control = figure.querySelector("input, select");
  const shown = figure.querySelector("output");
  const line = figure.querySelector(".line");
  const buttons = figure.querySelectorAll("button");
  const tell = (place) => {
    if (shown) shown.textContent = choice.names[place];
    if (line) line.textContent = choice.captions[place];
    buttons[0].disabled = place === 0;
    buttons[1].disabled = place === choice.names.length - 1;
  };
  const show = () => {
    const place = Number(control.value);
    tell(place);
    Plotly.restyle(plot, choice.updates[place], choice.traces);
  };
  // A slider tells of every place that it passes, a list of the choice that was made.
  control.addEventListener(control.matches("select") ? "change" : "input", show);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      control.value = String(Number(control.value) + Number(button.dataset.move));
      show();
    });
  }
  tell(choice.start);
}

const figures = JSON.parse(document.getElementById("plots").textContent);
const drawn = Object.entries(figures).map(async ([name, { data, layout, choice }]) => {
  const figure = document.getElementById(name);
  const plot = figure.querySelector(".plot");
  const margin = { l: 10, r: 14, t: 30, b: 40, ...layout.margin };
  const config = layout.scene ? { ...CONFIG, scrollZoom: true } : CONFIG;
  await Plotly.newPlot(plot, data, { ...SHARED, ...layout, margin }, config);
  if (choice) join(figure, plot, choice);
});
Promise.all(drawn).then(() => document.body.setAttribute("data-drawn", drawn.length));

const resize = (size) => {
  for (const plot of document.querySelectorAll(".plot")) {
    if (!plot.layout.scene) Plotly.relayout(plot, size);
  }
};
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
  resize({ autosize: false, width: PRINTED_WIDTH });
});
window.addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  resize({ autosize: true, width: null });
});
