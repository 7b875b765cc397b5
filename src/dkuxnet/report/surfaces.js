"use strict";
// Truth and prediction as surfaces side by side, turned together. Where there is no WebGL2 the picture stays.
(() => {
  const room = document.getElementById("surfaces");
  if (!room) return;
  const canvas = room.querySelector("canvas");
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) return;
  const cases = JSON.parse(document.getElementById("surfaces-data").textContent);
  const SEE_THROUGH = 0.4;
  const VERTEX = `#version 300 es
    in vec3 point; in vec3 normal; uniform mat3 turn; uniform vec2 scale; out vec3 facing;
    void main() { vec3 p = turn * point; facing = turn * normal; gl_Position = vec4(p.xy * scale, -p.z * 0.5, 1.0); }`;
  const FRAGMENT = `#version 300 es
    precision highp float; in vec3 facing; uniform vec4 colour; out vec4 drawn;
    void main() {
      float shade = 0.32 + 0.68 * abs(dot(normalize(facing), normalize(vec3(-0.35, 0.5, 0.8))));
      drawn = vec4(colour.rgb * shade * colour.a, colour.a);
    }`;
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return;
  gl.useProgram(program);
  const place = Object.fromEntries(["turn", "scale", "colour"].map((name) => [name, gl.getUniformLocation(program, name)]));
  let meshes = { truth: [], prediction: [] };
  let [yaw, pitch, zoom, shown, current] = [0, 0, 1, [], null];

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  function load(mesh) {
    if (!mesh) return null;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    for (const [name, data, kind] of [["point", mesh.points, gl.SHORT], ["normal", mesh.normals, gl.BYTE]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, bytes(data), gl.STATIC_DRAW);
      const at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, 3, kind, true, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    const faces = bytes(mesh.faces);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
    return { array, count: faces.length / (mesh.wide ? 4 : 2), kind: mesh.wide ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT };
  }

  function turn() { // column by column, as in surfaces.py
    const [c, s, d, e] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return [c, e * s, -d * s, 0, d, e, s, -e * c, d * c];
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.clearColor(1, 1, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.uniformMatrix3fv(place.turn, false, turn());
    ["truth", "prediction"].forEach((side, i) => {
      const half = Math.floor(width / 2);
      gl.viewport(i * half, 0, half, height);
      const size = 0.95 * zoom * Math.min(half, height);
      gl.uniform2f(place.scale, size / half, size / height);
      const visible = meshes[side].map((mesh, k) => k).filter((k) => shown[k] && meshes[side][k]);
      visible.reverse().forEach((k, rank) => { // the smallest first, solid; what may hide it is see-through
        const solid = rank === 0;
        const colour = current.colours[side][k];
        const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
        gl.bindVertexArray(meshes[side][k].array);
        const paint = (alpha) => {
          gl.uniform4f(place.colour, r, g, b, alpha);
          gl.drawElements(gl.TRIANGLES, meshes[side][k].count, meshes[side][k].kind, 0);
        };
        if (!solid) { // its nearest surface only: first the depth, then the colour
          gl.colorMask(false, false, false, false);
          paint(0);
          gl.colorMask(true, true, true, true);
          gl.depthFunc(gl.EQUAL);
        }
        paint(solid ? 1 : SEE_THROUGH);
        gl.depthFunc(gl.LESS);
      });
    });
  }

  function open(number) {
    current = cases[number];
    room.classList.toggle("empty", !current);
    if (!current) return;
    [yaw, pitch, zoom] = [current.yaw, current.pitch, 1];
    shown = current.names.map(() => true);
    current.loaded ??= Object.fromEntries(Object.entries(current.sides).map(([side, list]) => [side, list.map(load)]));
    meshes = current.loaded;
    room.querySelector(".classes").replaceChildren(...(current.names.length < 2 ? [] : current.names.map((name, k) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      [box.type, box.checked] = ["checkbox", true];
      box.addEventListener("change", () => { shown[k] = box.checked; draw(); });
      const key = document.createElement("span");
      key.className = "swatch label";
      key.style.background = current.colours.truth[k];
      label.append(box, key, name);
      return label;
    })));
    draw();
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => (held = null));
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    yaw += (event.clientX - held[0]) * 0.01;
    pitch = Math.max(-1.57, Math.min(1.57, pitch + (event.clientY - held[1]) * 0.01));
    held = [event.clientX, event.clientY];
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0, 1], ArrowRight: [0.1, 0, 1], ArrowUp: [0, -0.1, 1], ArrowDown: [0, 0.1, 1], "+": [0, 0, 1.1], "-": [0, 0, 1 / 1.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    yaw += step[0];
    pitch = Math.max(-1.57, Math.min(1.57, pitch + step[1]));
    zoom *= step[2];
    draw();
  });
  document.addEventListener("case", (event) => open(event.detail));
  window.addEventListener("resize", draw);
  document.body.classList.add("live-surfaces");
  room.hidden = false;
  open(0);
})();
