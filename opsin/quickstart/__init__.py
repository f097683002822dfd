"""Real pictures, real small backbones, on a CPU: assets, data, two stages, scores, report."""
