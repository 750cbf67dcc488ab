"""Knowledge translation: networks that write the weights of other networks."""
