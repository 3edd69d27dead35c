// Rotations as unit quaternions [x, y, z, w]. The robot's axes: x ahead, y left, z up.

export const ONE = [0, 0, 0, 1];

export function multiply([ax, ay, az, aw], [bx, by, bz, bw]) {
  return [
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
    aw * bw - ax * bx - ay * by - az * bz,
  ];
}

export const inverse = ([x, y, z, w]) => [-x, -y, -z, w];

export function about([x, y, z], angle) {
  const s = Math.sin(angle / 2);
  return [x * s, y * s, z * s, Math.cos(angle / 2)];
}

export function turn(q, [x, y, z]) {
  const [a, b, c] = multiply(multiply(q, [x, y, z, 0]), inverse(q));
  return [a, b, c];
}

// the rotation `q` told in axes that `frame` turns into ours
export const seenFrom = (frame, q) => multiply(multiply(frame, q), inverse(frame));

// device angles (degrees) of DeviceOrientationEvent: about z, then the new x, then the new y; earth's axes east, north, up
export function fromDevice(alpha, beta, gamma) {
  const rad = Math.PI / 180;
  return multiply(
    multiply(about([0, 0, 1], alpha * rad), about([1, 0, 0], beta * rad)),
    about([0, 1, 0], gamma * rad),
  );
}

// WebXR has x right, y up, z towards the viewer
export const positionFromXr = ({ x, y, z }) => [-z, -x, y];
export const rotationFromXr = ({ x, y, z, w }) => [-z, -x, y, w];

export const add = (a, b) => a.map((v, i) => v + b[i]);
export const times = (a, k) => a.map((v) => v * k);
