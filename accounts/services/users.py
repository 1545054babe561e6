"""The agents' end users."""

from accounts.models import User
from accounts.services.records import Records

users = Records(User)
