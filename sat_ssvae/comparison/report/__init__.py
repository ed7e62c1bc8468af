"""How a comparison looks: page, figures and clips."""
