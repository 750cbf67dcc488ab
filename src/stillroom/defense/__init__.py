"""Guard a served classifier against being cloned: recognise the stealing account, poison only its answers."""
