"""Real T5X as a second engine: the only folder that imports t5x. Gin files: `gin/t5x/`."""
