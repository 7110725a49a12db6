import { defineConfig } from 'vite';

// The page is embedded in the binary and served under a strict content security policy: every script and style is
// a file of its own, nothing is inlined, nothing is fetched from elsewhere. The build is reproducible: CI compares.
export default defineConfig({
  build: {
    outDir: '../dist',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
  },
  esbuild: { jsx: 'automatic', jsxImportSource: 'preact', legalComments: 'none' },
});
