"""HTTP: what people and deploy tools ask and order. It decides nothing; orders go through the door like every fact."""
