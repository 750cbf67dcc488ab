"""stillroom: trained models made small, few-step, robust and safe to ship."""

