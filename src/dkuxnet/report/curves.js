"use strict";
// Training curves as inline svg: the values under the pointer are told, a line is switched by its name.
(() => {
  const room = document.getElementById("curves");
  if (!room) return;
  const panels = JSON.parse(document.getElementById("curves-data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 270, 52, 12, 10, 34];

  const draw = (tag, attributes, parent, text) => {
    const element = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const make = (tag, name, parent, text) => {
    const element = document.createElement(tag);
    element.className = name;
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const tell = (value) => (value === 0 ? "0" : Math.abs(value) < 0.001 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toPrecision(4));

  // Round numbers over [low, high], about `count`; on a logarithmic axis powers of ten, with 2 and 5 where there are few.
  function ticks(low, high, count, log) {
    if (log) {
      const found = [];
      const few = Math.log10(high / low) < 2.2;
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const digit of few ? [1, 2, 5] : [1]) found.push(Number(`${digit}e${power}`));
      return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    }
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
    return found;
  }

  function show(panel) {
    const figure = make("div", "panel", room);
    make("h3", "", figure, panel.title);
    const legend = make("div", "switches", figure);
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0,
      "aria-label": `${panel.title} over the steps; the arrow keys move the reading` }, figure);
    const reading = make("output", "reading", figure);
    const on = panel.lines.map(() => true);
    const steps = [...new Set(panel.lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
    const usable = (value) => Number.isFinite(value) && (!panel.log || value > 0);
    let at = steps.length - 1;
    let x, y;

    function redraw() {
      svg.replaceChildren();
      const values = panel.lines.flatMap((line, i) => (on[i] ? line.points.map(([, value]) => value).filter(usable) : []));
      if (!values.length) return void (reading.textContent = "");
      let [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
      if (!panel.log) low = Math.min(low, 0);
      if (low === high) [low, high] = panel.log ? [low / 2, high * 2] : [low, high || 1];
      const [scale, first, last] = [panel.log ? Math.log : Number, steps[0], steps[steps.length - 1]];
      x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
      y = (value) => HEIGHT - BOTTOM - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - TOP - BOTTOM);
      for (const value of ticks(low, high, 5, panel.log)) {
        draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }, svg);
        draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg, Number(value.toPrecision(6)));
      }
      for (const step of ticks(first, last, 5, false)) draw("text", { x: x(step), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, svg, step);
      draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, svg, "step");
      panel.lines.forEach((line, i) => {
        if (!on[i]) return;
        const points = line.points.filter(([, value]) => usable(value)).map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
        draw("polyline", { points: points.join(" "), stroke: line.colour, class: "line", "data-line": line.name }, svg);
      });
      draw("g", { class: "cursor" }, svg);
      point();
    }

    // The reading at steps[at]: of every line that is on its value there, or the last one before it.
    function point() {
      const cursor = svg.querySelector(".cursor");
      if (!cursor) return;
      cursor.replaceChildren();
      const step = steps[at];
      draw("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }, cursor);
      const told = [`step ${step}`];
      panel.lines.forEach((line, i) => {
        const before = line.points.filter(([place]) => place <= step);
        if (!on[i] || !before.length) return;
        const [, value] = before[before.length - 1];
        told.push(`${line.name} ${tell(value)}`);
        if (usable(value)) draw("circle", { cx: x(step), cy: y(value), r: 3.5, fill: line.colour }, cursor);
      });
      reading.textContent = told.join(" · ");
    }

    panel.lines.forEach((line, i) => {
      const button = make("button", "switch", legend, line.name);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.style.setProperty("--key", line.colour);
      button.addEventListener("click", () => {
        on[i] = !on[i];
        button.setAttribute("aria-pressed", on[i]);
        redraw();
      });
    });
    svg.addEventListener("pointermove", (event) => {
      if (!x) return;
      const inside = ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * WIDTH;
      at = steps.reduce((best, step, i) => (Math.abs(x(step) - inside) < Math.abs(x(steps[best]) - inside) ? i : best), 0);
      point();
    });
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
      if (!by) return;
      at = Math.max(0, Math.min(steps.length - 1, at + by));
      event.preventDefault();
      point();
    });
    redraw();
  }

  panels.forEach(show);
  room.hidden = false;
  document.body.classList.add("live-curves");
})();
