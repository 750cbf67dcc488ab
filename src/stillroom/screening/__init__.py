"""Drug-target interaction screening: similarity-based estimators in scikit-learn's manners, and honest protocols."""
