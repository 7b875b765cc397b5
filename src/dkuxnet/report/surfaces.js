"use strict";
// Truth and prediction as surfaces side by side in NiiVue, turned together. Where it cannot run, the pictures stay.
(async () => {
  const room = document.getElementById("surfaces");
  if (!room || !document.createElement("canvas").getContext("webgl2")) return;
  const canvas = room.querySelector("canvas");
  const cases = JSON.parse(document.getElementById("surfaces-data").textContent);
  const SEE_THROUGH = 0.4;
  const KEYS = { ArrowLeft: [-6, 0, 1], ArrowRight: [6, 0, 1], ArrowUp: [0, -6, 1], ArrowDown: [0, 6, 1], "+": [0, 0, 1.1], "-": [0, 0, 1 / 1.1] };
  // Its own mouse control is off: it would keep the wheel from scrolling the page.
  const nv = new niivue.Niivue({ backColor: [1, 1, 1, 1], show3Dcrosshair: false, isOrientationTextVisible: false, interactive: false, logLevel: "error" });
  let [wanted, current, sides, shown] = [0, null, [], []]; // sides: the meshes of truth and of prediction, largest first; null where there is none

  nv.drawScene = () => { // NiiVue draws one scene a canvas: here it is drawn twice, each half with one side's meshes
    nv.gl.clearColor(1, 1, 1, 1);
    nv.gl.clear(nv.gl.COLOR_BUFFER_BIT);
    sides.forEach((side, i) => {
      for (const mesh of nv.meshes) mesh.visible = false;
      const visible = side.filter((mesh, k) => mesh && shown[k]);
      for (const mesh of visible) [mesh.visible, mesh.opacity] = [true, mesh === visible.at(-1) ? 1 : SEE_THROUGH]; // what may hide the smallest is see-through
      nv.draw3D([(i * canvas.width) / 2, 0, canvas.width / 2, canvas.height]);
    });
  };

  function turn(azimuth, elevation, zoom = 1) {
    nv.scene.volScaleMultiplier *= zoom;
    nv.setRenderAzimuthElevation(nv.scene.renderAzimuth + azimuth, Math.max(-90, Math.min(90, nv.scene.renderElevation + elevation)));
  }

  async function read(data, colour) {
    if (!data) return null;
    const rgba = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).concat(255);
    const mesh = await niivue.NVMesh.readMesh(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer, "surface.mz3", nv.gl, 1, new Uint8Array(rgba));
    mesh.meshShaderIndex = nv.meshShaderNameToNumber("Diffuse");
    return mesh;
  }

  async function open(number) {
    wanted = number;
    await ready;
    const chosen = cases[number];
    const read_sides = await Promise.all((chosen ? chosen.sides : []).map((side, i) => Promise.all(side.map((data, k) => read(data, chosen.colours[i][k])))));
    if (wanted !== number) return; // another case was chosen meanwhile
    room.classList.toggle("empty", !chosen);
    [current, sides] = [chosen, []];
    for (const mesh of [...nv.meshes]) nv.removeMesh(mesh);
    for (const mesh of read_sides.flatMap((side) => side.toReversed())) if (mesh) nv.addMesh(mesh); // drawn in this order: the solid one first
    sides = read_sides;
    if (!chosen) return;
    shown = chosen.names.map(() => true);
    list(chosen);
    [nv.scene.renderAzimuth, nv.scene.renderElevation, nv.scene.volScaleMultiplier] = [chosen.azimuth, chosen.elevation, 1];
    nv.drawScene();
  }

  function list(chosen) {
    room.querySelector(".classes").replaceChildren(...(chosen.names.length < 2 ? [] : chosen.names.map((name, k) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      [box.type, box.checked] = ["checkbox", true];
      box.addEventListener("change", () => { shown[k] = box.checked; nv.drawScene(); });
      const key = document.createElement("span");
      key.className = "swatch label";
      key.style.background = chosen.colours[0][k];
      label.append(box, key, name);
      return label;
    })));
  }

  room.hidden = false;
  const ready = nv.attachToCanvas(canvas, true);
  document.addEventListener("case", (event) => open(event.detail));
  try {
    await open(0);
  } catch (error) {
    return (room.hidden = true);
  }
  document.body.classList.add("live-surfaces");
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => (held = null));
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) * 0.6, (event.clientY - held[1]) * 0.6);
    held = [event.clientX, event.clientY];
  });
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key]) return;
    event.preventDefault();
    turn(...KEYS[event.key]);
  });
})();
