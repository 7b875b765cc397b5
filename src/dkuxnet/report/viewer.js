"use strict";
// The chosen cases in NiiVue: layers on and off, their opacity, three planes. Where it cannot run, the pictures stay.
(async () => {
  const room = document.getElementById("viewer");
  if (!room) return;
  const find = (name) => room.querySelector(`.${name}`);
  const canvas = find("slices");
  const fail = (why) => {
    find("tools").hidden = canvas.hidden = true;
    find("missing").hidden = false;
    find("missing").textContent = why;
    document.body.classList.add("no-viewer");
  };
  room.hidden = false;
  if (!document.createElement("canvas").getContext("webgl2"))
    return fail("This browser draws no WebGL2, so the scans cannot be leafed through here. The pictures above show the same cases.");
  const cases = JSON.parse(document.getElementById("cases-data").textContent);
  const opacity = { scan: 1, label: 0.5, map: 0.7 };
  let wanted = 0; // the case that was chosen last
  const shown = new Map([["Scan", true], ["Truth", true], ["Prediction", true]]);
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.4, crosshairWidthUnit: "percent", fontMinPx: 15, fontColor: [1, 1, 1, 1], sagittalNoseLeft: true, loadingText: "",
    isRadiologicalConvention: cases[0].oriented, isOrientationTextVisible: cases[0].oriented, dragAndDropEnabled: false,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER, multiplanarLayout: innerWidth < 700 ? niivue.MULTIPLANAR_TYPE.AUTO : niivue.MULTIPLANAR_TYPE.ROW, logLevel: "error",
  });

  const FAINT = 0.004; // NiiVue outlines no drawing that is not drawn at all
  const volumes = (chosen) => chosen.layers.filter((layer) => !layer.outline);
  const opacityOf = (layer) => (shown.get(layer.key) ? opacity[layer.kind] : 0);
  // What is outlined is a drawing to NiiVue, of which it has one.
  const outline = (layer) => {
    const rim = Math.min(1, 2 * opacityOf(layer));
    nv.drawRimOpacity = rim;
    nv.setDrawOpacity(rim && FAINT);
  };
  const show = (chosen) => chosen.layers.forEach((layer) => (layer.outline ? outline(layer) : nv.setOpacity(volumes(chosen).indexOf(layer), opacityOf(layer))));
  const table = (colours) => {
    const part = (at) => [0, ...colours.map((colour) => parseInt(colour.slice(at, at + 2), 16))];
    return { R: part(1), G: part(3), B: part(5), A: [0, ...colours.map(() => 255)], I: [0, ...colours.map((_, i) => i + 1)],
      labels: ["", ...colours.map((_, i) => `${i + 1}`)] };
  };

  async function open(number) {
    room.setAttribute("aria-busy", "true");
    wanted = number;
    const chosen = cases[number];
    const images = await Promise.all(chosen.layers.map((layer, i) => niivue.NVImage.loadFromBase64({ base64: layer.data, name: `layer${i}.nii.gz`,
      colormap: layer.kind === "map" ? "inferno" : "gray", cal_min: layer.kind === "map" ? 8 : 0, cal_max: 255 })));
    if (wanted !== number) return; // another case was chosen meanwhile
    while (nv.volumes.length) nv.removeVolumeByIndex(nv.volumes.length - 1);
    for (const [i, layer] of chosen.layers.entries()) {
      if (layer.outline) continue;
      images[i].opacity = opacityOf(layer);
      if (layer.kind === "label") images[i].setColormapLabel(table(layer.colours));
      nv.addVolume(images[i]);
    }
    for (const [i, layer] of chosen.layers.entries()) {
      if (!layer.outline) continue;
      nv.loadDrawing(images[i]);
      nv.setDrawColormap(table(layer.colours));
      outline(layer);
    }
    nv.opts.isRadiologicalConvention = nv.opts.isOrientationTextVisible = chosen.oriented;
    nv.scene.crosshairPos = chosen.centre;
    nv.updateGLVolume();
    list(chosen);
    room.dataset.shown = number;
    room.setAttribute("aria-busy", "false");
  }

  function list(chosen) {
    find("layers").replaceChildren(...chosen.layers.map((layer) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = shown.get(layer.key) || false;
      box.dataset.layer = layer.key;
      box.addEventListener("change", () => {
        shown.set(layer.key, box.checked);
        show(chosen);
      });
      const key = document.createElement("span");
      key.className = `swatch ${layer.kind}${layer.outline ? " outline" : ""}`;
      if (layer.colours) key.style[layer.outline ? "borderColor" : "background"] = layer.colours[0];
      label.append(box, key, layer.name);
      return label;
    }));
  }

  try {
    await nv.attachToCanvas(canvas);
    nv.setSliceType(niivue.SLICE_TYPE.MULTIPLANAR);
    await open(0);
  } catch (error) {
    return fail(`The viewer cannot start in this browser (${error.message}). The pictures above show the same cases.`);
  }
  room.addEventListener("change", ({ target }) => {
    if (target.name === "case") {
      open(Number(target.value));
      document.dispatchEvent(new CustomEvent("case", { detail: Number(target.value) }));
    } else if (target.name === "plane") nv.setSliceType(niivue.SLICE_TYPE[target.value]);
  });
  room.addEventListener("input", ({ target }) => {
    if (!target.dataset.opacity) return;
    opacity[target.dataset.opacity] = Number(target.value);
    show(cases[Number(room.dataset.shown)]);
  });
})();
