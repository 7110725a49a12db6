// Allowed and denied connections a second over the last minute.

import { useEffect, useRef } from 'preact/hooks';
import type { MapModel } from './model';
import { rate } from './text';

const POINTS = 60;

export function Spark({ model, beat }: { model: MapModel; beat: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const series = useRef<[number, number][]>([]);
  const last = useRef(0);
  const now = performance.now();
  const [passing, dropping] = [model.passing.now(now), model.dropping.now(now)];
  useEffect(() => {
    const timer = setInterval(() => {
      const t = performance.now();
      series.current.push([model.passing.now(t), model.dropping.now(t)]);
      if (series.current.length > POINTS) series.current.shift();
      draw();
    }, 1000);
    return () => clearInterval(timer);
  }, []);
  const draw = () => {
    const c = canvas.current?.getContext('2d');
    if (!c || !canvas.current) return;
    const { width, height } = canvas.current;
    const style = getComputedStyle(document.documentElement);
    c.clearRect(0, 0, width, height);
    const most = Math.max(1, ...series.current.map(([a, b]) => Math.max(a, b)));
    (['--allow', '--deny'] as const).forEach((name, which) => {
      c.beginPath();
      series.current.forEach((point, i) => {
        const x = ((POINTS - series.current.length + i) / (POINTS - 1)) * (width - 4) + 2;
        const y = height - 3 - (point[which]! / most) * (height - 6);
        if (i === 0) c.moveTo(x, y); else c.lineTo(x, y);
      });
      c.strokeStyle = style.getPropertyValue(name);
      c.lineWidth = 2;
      c.lineJoin = 'round';
      c.stroke();
    });
  };
  void beat; last.current = now;
  return (
    <div class="spark" title="Connections and requests a second; the line is the last minute">
      <canvas ref={canvas} width={180} height={44} aria-hidden="true" />
      <span class="allow">{rate(passing)}<span class="sr"> allowed</span></span>
      <span class="deny">{rate(dropping)}<span class="sr"> denied</span></span>
    </div>
  );
}
